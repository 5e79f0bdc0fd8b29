-- include: lease
-- unlock: ends the current lease or call, whoever has it, and hands over. For operators.
-- Atomic because the lease shown to the operator may have ended meanwhile: only `member` is unlocked.
-- Run twice, the second run finds another holder and changes nothing.
--
-- KEYS  1 state   hash
--       2 queue   sorted set
-- ARGV  1 member  the holder to unlock
-- Returns 'unlocked', 'free' when `member` is not the holder, or 'foreign <value>': nothing changed.
local state, value = load(KEYS[1])
if not state then return 'foreign ' .. value end
if state.member ~= ARGV[1] then return 'free' end
if state.lease then
  redis.call('HSET', KEYS[1], 'lost', state.member)
  shelve(state, clock())
end
hand_over(state, KEYS[2])
return 'unlocked'
