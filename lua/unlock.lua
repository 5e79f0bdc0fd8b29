-- include: lease
-- unlock: ends the lease or offer of any member, and hands the lock over. For operators.
-- Atomic because the lease that the operator saw may have ended since: only the lease of `member` is ended.
-- Run twice, the second run finds another holder and changes nothing.
--
-- KEYS  1 state   hash
--       2 queue   sorted set
-- ARGV  1 member  whose lease or offer to end
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
