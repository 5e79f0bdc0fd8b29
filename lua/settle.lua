-- include: lease
-- settle: removes a pending intent whose outcome is known now, or marks it as reported.
-- Atomic because the field `pending` must match the number of entries that are new.
-- Run twice, the second run changes nothing.
--
-- KEYS  1 state    hash
-- ARGV  1 nonce    of the intent
--       2 outcome  'known' removes it; 'reported' keeps it for people to look at, and later holders skip it
-- Returns 'ok', 'gone' when there was none, or 'foreign <field> <value>': nothing changed.
local state, value = load(KEYS[1])
if not state then return 'foreign ' .. value end
local name = 'pending:' .. ARGV[1]
local entry = redis.call('HGET', KEYS[1], name)
if entry and not is_pending(entry) then return 'foreign ' .. named(name, entry) end
if not strike(KEYS[1], ARGV[1]) then return 'gone' end
if ARGV[2] == 'reported' then
  redis.call('HSET', KEYS[1], name, (entry:gsub('^(%d+) new ', '%1 reported ')))
end
return 'ok'
