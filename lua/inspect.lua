-- include: lease
-- inspect: what the state says, read-only.
--
-- KEYS  1 state   hash
--       2 queue   sorted set
-- Returns {'ok', now, nonce, member, lease, left, waiting, lost} or {'foreign', value}: now in microseconds;
-- nonce and lease decimal ns or ''; member who has the lock or '', only called to take it while lease is ''; left in microseconds
-- until the lease or call ends, 0 when it ran out; waiting the number of waiters; lost a member or ''.
local state, value = load(KEYS[1])
if not state then return {'foreign', value} end
local now = clock()
return {
  'ok', now, state.nonce or '', state.member or '', state.lease or '', left(state, now),
  whole(redis.call('ZCOUNT', KEYS[2], '-inf', WAITERS)),
  redis.call('HGET', KEYS[1], 'lost') or '',
}
