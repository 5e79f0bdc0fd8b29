-- include: lease
-- settle: removes a pending call whose outcome is known now, or marks it as reported.
-- Atomic because the number of the new ones must stay that of the entries.
-- Run twice, the second run finds it done.
--
-- KEYS  1 state    hash
-- ARGV  1 nonce    of the intent
--       2 outcome  'known' removes it, 'reported' leaves it for people and lets no later holder look at it
-- Returns 'ok', 'gone' when there was none, or 'foreign <value>': nothing changed.
local state, value = load(KEYS[1])
if not state then return 'foreign ' .. value end
local name = 'pending:' .. ARGV[1]
local entry = redis.call('HGET', KEYS[1], name)
if not strike(KEYS[1], ARGV[1]) then return 'gone' end
if ARGV[2] == 'reported' then
  redis.call('HSET', KEYS[1], name, (entry:gsub('^(%d+) new ', '%1 reported ')))
end
return 'ok'
