-- heartbeat: says once a second that a waiting process is alive, and hands over the lock when a lease or offer ran out.
-- Atomic because only one process must act on the end of a lease.
-- Safe to run twice: the second run finds that the first has handed over.
--
-- KEYS  1 state    hash
--       2 queue    sorted set
--       3 log      stream, lib/trail.lua; may be missing
-- ARGV  1 process  the process
--       2 member   its oldest waiter, of those that are not booked if there is one
--       3 heard    '1' when PUBLISH was seen to count the process, '0' otherwise
-- Returns 'ok <joined> <left> <offered> <cool> <reason>'
--           joined   as in acquire; '=' when the process is not in the queue and need not be; '-' when the oldest
--                    waiter has lost its place, so that all waiters of the process have to ask again
--           left     microseconds, at most, until the current lease or offer ends, or the chance of a high-priority
--                    waiter to go before the member that the lock is booked for
--           offered  the member of this process that has the lock, is offered it, or may go before; or '-'
--           cool     microseconds until the cool-down ends, 0 for none
--           reason   of the cool-down
--         or 'foreign <field> <value>': nothing changed.
local LOG = KEYS[3]
-- include: ours
-- include: pace
-- include: ending
-- include: booking
local process, member = ARGV[1], ARGV[2]
local now = clock()
if close_if_over(now) then hand_over(now) end
local offered = state.asked and invited(now)
if not offered or process_of(offered) ~= process then offered = '-' end
if state.member and process_of(state.member) == process and (state.lease or tonumber(now) >= due()) then
  offered = state.member
end
local joined = '-'
local score = redis.call('ZSCORE', KEYS[2], member)
if score then
  joined = queue_up(member, tonumber(score), now, ARGV[3] == '1')
elseif state.member == member then
  joined = redis.call('ZSCORE', KEYS[2], process) or '='
end
local cool, reason = cooling(state.cool_down, now)
return table.concat({ 'ok', joined, left(now), offered, whole(cool), reason }, ' ')
