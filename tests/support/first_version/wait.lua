-- include: lease
-- include: pace
-- wait: a waiting process's sign of life, once a second; also notices leases and calls that ran out.
-- Atomic because the end of a lease must be noticed by one process only.
-- Safe to run twice: the second run finds the first one's hand-over.
--
-- KEYS  1 state    hash
--       2 queue    sorted set
-- ARGV  1 process  the process
--       2 member   its oldest waiter
-- Returns 'ok <joined> <left> <called> <cool> <reason>'
--           joined  as in acquire; '=' when the queue knows nothing of the process and need not; '-' when the place of
--                   the oldest waiter is gone and all of the process have to ask again
--           left    microseconds until the current lease or call ends, at most
--           called  the member of this process that should take the lock, or '-'
--           cool    microseconds until a cool-down is over, 0 for none
--           reason  of the cool-down
--         or 'foreign <value>': nothing changed.
local process, member = ARGV[1], ARGV[2]
local state, value = load(KEYS[1])
if not state then return 'foreign ' .. value end
local now = clock()
if ended(state, KEYS[2], now) then hand_over(state, KEYS[2]) end
local called = '-'
if state.member and not state.lease and process_of(state.member) == process
  and now - state.since >= tonumber(state.term) - CALL then
  called = state.member
end
local joined = '-'
local score = redis.call('ZSCORE', KEYS[2], member)
if score then
  joined = queue_up(KEYS[2], member, tonumber(score), now)
elseif state.member == member then
  joined = redis.call('ZSCORE', KEYS[2], process) or '='
end
local cool, reason = cooling(state.cool_down, now)
return table.concat({ 'ok', joined, left(state, now), called, whole(cool), reason }, ' ')
