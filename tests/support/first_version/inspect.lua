-- include: lease
-- include: pace
-- inspect: what the state says, read-only.
--
-- KEYS  1 state   hash
--       2 queue   sorted set
-- Returns 'ok <now> <nonce> <lease> <left> <waiting> <member> <pending> <cool> <reason>'
--           now      microseconds
--           nonce    the last one, decimal ns, '-' for none
--           lease    its first nonce; '-' when there is none or a member is only called to take the lock
--           left     microseconds until the lease or call ends, 0 when it ran out
--           waiting  number of waiters
--           member   who has the lock or is called to take it, '-' when it is free
--           pending  number of intents that wait to be settled
--           cool     microseconds until a cool-down is over, 0 for none
--           reason   of the cool-down
--         or 'foreign <value>'.
local state, value = load(KEYS[1])
if not state then return 'foreign ' .. value end
local now = clock()
local waiting = redis.call('ZCOUNT', KEYS[2], '-inf', WAITERS)
local cool, reason = cooling(state.cool_down, now)
return table.concat({
  'ok', now, state.nonce or '-', state.lease or '-', left(state, now), whole(waiting), state.member or '-',
  state.pending, whole(cool), reason,
}, ' ')
