-- include: lease
-- inspect: what the state says, read-only.
--
-- KEYS  1 state   hash
--       2 queue   sorted set
-- Returns 'ok <now> <nonce> <lease> <left> <waiting> <member>' or 'foreign <value>': now in microseconds; nonce decimal
-- ns, '-' for none; lease the first nonce of the lease, '-' while a member is only called to take the lock; left in
-- microseconds until the lease or call ends, 0 when it ran out; waiting the number of waiters; member who has the
-- lock, '-' when it is free.
local state, value = load(KEYS[1])
if not state then return 'foreign ' .. value end
local now = clock()
local waiting = redis.call('ZCOUNT', KEYS[2], '-inf', WAITERS)
return table.concat({
  'ok', now, state.nonce or '-', state.lease or '-', left(state, now), whole(waiting), state.member or '-',
}, ' ')
