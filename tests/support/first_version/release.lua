-- include: lease
-- release: gives up whatever the member has, lease, call or place, and hands the lock over.
-- Atomic because between the end of one lease and the call to the next nobody may slip in.
-- Run twice, the second run finds nothing to give up.
-- The first write needs no memory, so that out of memory cannot keep a lock.
--
-- KEYS  1 state   hash
--       2 queue   sorted set
-- ARGV  1 member  as in acquire
--       2 lease   first nonce of the lease that the caller believes to hold, '0' for none
--       3 intent  nonce of the intent that the caller noted last, '0' for none
--       4 known   '1' when the outcome of its call is known, or nothing was sent; '0' makes the intent a pending one
-- Returns 'released'; 'lost' when that lease is known to have ended before (it ran out, or the state was lost);
--         'gone' when the member has no lease and nobody knows why: it was released before, which a caller that has
--         sent this once only knows not to be so; or 'foreign <value>': nothing changed.
local member = ARGV[1]
local state, value = load(KEYS[1])
if not state then return 'foreign ' .. value end
if state.member == member then
  hand_over(state, KEYS[2])
  if state.intent and ARGV[4] == '0' then shelve(state, clock()) end
  if state.intent then redis.call('HDEL', KEYS[1], 'intent') end
  return 'released'
end
if ARGV[4] == '1' and ARGV[3] ~= '0' then strike(KEYS[1], ARGV[3]) end
if redis.call('ZREM', KEYS[2], member) == 1 and not anyone_waits(KEYS[2]) then
  redis.call('DEL', KEYS[2])
end
if redis.call('HGET', KEYS[1], 'lost') == member or greater(ARGV[2], state.nonce or '0') then return 'lost' end
return 'gone'
