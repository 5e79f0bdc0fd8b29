-- include: journal
-- pending: lists the calls with an unknown outcome, also that of a lease which has ended while nobody asked. It changes
-- nothing.
--
-- KEYS  1 state  hash
-- Returns 'ok <now>' in microseconds, followed for each by ' <nonce> <since> <state> <key> <method> <ids> <at> <txids>'
--         as in lib/lease.lua, with '0 -' where there is no result; or 'foreign <field> <value>'. Fields but those of
--         intents may have any value, and `lock` may if there is no intent.
local state, value = read(KEYS[1])
if not state then return 'foreign ' .. value end
local now = clock()
local words = { 'ok', now }
local function list(nonce, entry)
  words[#words + 1] = nonce .. ' ' .. entry
  if entry:find('^%d+ %l+ %S+ %S+ %S+$') then words[#words + 1] = '0 -' end
end
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local nonce, entry = fields[i]:match('^pending:(.*)$'), fields[i + 1]
  if nonce then
    if foreign(nonce) or not is_entry(entry) then return 'foreign ' .. named(fields[i], entry) end
    list(nonce, entry)
  elseif fields[i] == 'intent' then
    if not state.intent then return 'foreign ' .. named('intent', entry) end
    if state.foreign_lock then return 'foreign ' .. state.foreign_lock end
    local since = abandoned_since(state, now)
    if since then list(entry:match('^%d+'), since .. ' new ' .. entry:match(' (.+)$')) end
  end
end
return table.concat(words, ' ')
