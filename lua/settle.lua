-- settle: changes an entry of the journal: notes what became of a call, marks that people have to look at it, or
-- removes it when it is known and told. Whatever it finds, it counts the entries anew.
-- Atomic because the call's own release may remove the entry at the same time, and what it knows goes first.
-- Run twice, the second run changes nothing but the time of the note.
--
-- KEYS  1 state  hash
--       2 queue  sorted set
--       3 log    stream, lib/trail.lua; may be missing
-- ARGV  1 nonce  of the intent; '0' only to count
--       2 how    'found', 'absent', 'partly' or 'unknown' notes that this is about to be told; 'new' notes nothing and
--                asks whether it is still listed; 'reported' keeps it for people to look at, and later holders skip it;
--                'known' removes it; 'cleared' does, too, and the log says that it was done by hand
--       3 txids  as in lib/journal.lua, for a note; '-' otherwise
--       4 name   of who does it, percent-encoded, for the log
-- Returns 'ok', 'gone' when there was none, or 'foreign <field> <value>': nothing changed.
local LOG = KEYS[3]
-- include: ours
-- include: ending
local nonce, how, txids = ARGV[1], ARGV[2], ARGV[3]
local now = clock()
if abandoned_since(now) and state.intent:match('^%d+') == nonce then -- so that its holder can't go on
  close_if_over(now)
  free()
  pcall(offer_next, now)
end
local name = 'pending:' .. nonce
local entry = redis.call('HGET', KEYS[1], name)
if entry and not is_entry(entry) then return 'foreign ' .. named(name, entry) end
local before = entry and entry:match('^%d+ (%l+)')
if entry and (how == 'known' or how == 'cleared') then
  redis.call('HDEL', KEYS[1], name)
  if how == 'known' and before == 'reported' then how = 'forgotten' end
elseif entry and how ~= 'new' then
  local since, what, holder = entry:match('^(%d+) %l+ (%S+ %S+ %S+) ?(%S*)')
  if holder == '' then holder = '-' end
  local result = how == 'reported' and '' or ' ' .. now .. ' ' .. txids
  redis.call('HSET', KEYS[1], name, since .. ' ' .. how .. ' ' .. what .. ' ' .. holder .. result)
end
recount()
if entry then
  local intent = entry:match('^%d+ %l+ (.+)$')
  if how == 'cleared' or how == 'forgotten' then
    note_call(how, nonce, intent, 'by', ARGV[4])
  elseif how ~= 'known' and how ~= 'new' and how ~= 'reported' and how ~= before then
    note_call('settled', nonce, intent, 'result', how, 'txids', txids, 'by', ARGV[4])
  end
end
return entry and 'ok' or 'gone'
