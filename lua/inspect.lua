-- include: journal
-- include: pace
-- inspect: reads the state and changes nothing.
--
-- KEYS  1 state   hash
--       2 queue   sorted set
-- ARGV  1 what    'all', or 'lock' to leave the other fields out, so that they may have any value
-- Returns 'ok <now> <nonce> <lease> <left> <waiting> <member> <pending> <cool> <reason>'
--           now      microseconds
--           nonce    last nonce, decimal ns, '-' for none
--           lease    first nonce of the lease; '-' when there is none or the lock is only offered to a member
--           left     microseconds until the lease or offer ends, 0 when it ran out
--           waiting  number of waiters
--           member   member that holds the lock or is offered it, '-' when the lock is free
--           pending  number of calls that wait to be settled or told, also if the lease of one has only just run out
--           cool     microseconds until the cool-down ends, 0 for none
--           reason   of the cool-down
--         or 'foreign <field> <value>'.
local state, value = read(KEYS[1])
if not state then return 'foreign ' .. value end
local all = ARGV[1] == 'all'
value = state.foreign_lock or all and state.foreign
if value then return 'foreign ' .. value end
local now = clock()
local waiting = redis.pcall('ZCOUNT', KEYS[2], '-inf', WAITERS)
if type(waiting) == 'table' then
  if all then return waiting end
  waiting = 0
end
local cool, reason = cooling(state.cool_down, now)
local pending = tonumber((state.pending or '0'):match('^%d+')) + (abandoned_since(state, now) and 1 or 0)
return table.concat({
  'ok', now, state.nonce or '-', state.lease or '-', left(state, now), whole(waiting), state.member or '-',
  whole(pending), whole(cool), reason,
}, ' ')
