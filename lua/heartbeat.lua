-- include: lease
-- include: pace
-- heartbeat: says once a second that a waiting process is alive, and hands over the lock when a lease or offer ran out.
-- Atomic because only one process must act on the end of a lease.
-- Safe to run twice: the second run finds that the first has handed over.
--
-- KEYS  1 state    hash
--       2 queue    sorted set
-- ARGV  1 process  the process
--       2 member   its oldest waiter, of those that are not booked if there is one
-- Returns 'ok <joined> <left> <offered> <cool> <reason>'
--           joined   as in acquire; '=' when the process is not in the queue and need not be; '-' when the oldest
--                    waiter has lost its place, so that all waiters of the process have to ask again
--           left     microseconds, at most, until the current lease or offer ends, or the chance of a high-priority
--                    waiter to go before the member that the lock is booked for
--           offered  the member of this process that the lock is offered to, or that may go before; or '-'
--           cool     microseconds until the cool-down ends, 0 for none
--           reason   of the cool-down
--         or 'foreign <field> <value>': nothing changed.
local process, member = ARGV[1], ARGV[2]
local state, value = load(KEYS[1])
if not state then return 'foreign ' .. value end
local now = clock()
if close_if_over(state, KEYS[2], now) then hand_over(state, KEYS[2]) end
local offered = state.asked and invited(state, KEYS[2], now)
if not offered or process_of(offered) ~= process then offered = '-' end
if state.member and not state.lease and process_of(state.member) == process and tonumber(now) >= due(state) then
  offered = state.member
end
local joined = '-'
local score = redis.call('ZSCORE', KEYS[2], member)
if score then
  joined = queue_up(KEYS[2], member, tonumber(score), now)
elseif state.member == member then
  joined = redis.call('ZSCORE', KEYS[2], process) or '='
end
local cool, reason = cooling(state.cool_down, now)
return table.concat({ 'ok', joined, left(state, now), offered, whole(cool), reason }, ' ')
