-- include: lease
-- wait: a waiting process's sign of life, once a second; also notices leases and calls that ran out.
-- Atomic because the end of a lease must be noticed by one process only.
-- Safe to run twice: the second run finds the first one's hand-over.
--
-- KEYS  1 state    hash
--       2 queue    sorted set
-- ARGV  1 process  the process
--       2 member   its oldest waiter
-- Returns 'ok <joined> <left> <called>': `joined` as in acquire, '-' when the place of the oldest waiter is gone and
--         all waiters of the process have to ask again; the current lease or call ends in `left` microseconds at the
--         latest; `called` the member of this process that should take the lock, or '-'.
--         'foreign <value>': nothing changed.
local process, member = ARGV[1], ARGV[2]
local state, value = load(KEYS[1])
if not state then return 'foreign ' .. value end
local now = clock()
if ended(state, KEYS[2], now) then hand_over(state, KEYS[2]) end
local called = '-'
if state.member and not state.lease and process_of(state.member) == process then called = state.member end
local joined = '-'
local queued = redis.call('ZSCORE', KEYS[2], member)
if queued then
  redis.call('ZADD', KEYS[2], 'NX', whole(PROCESSES + now), process)
  redis.call('PEXPIRE', KEYS[2], QUEUE_LIFE)
end
if queued or called == member then joined = redis.call('ZSCORE', KEYS[2], process) or '-' end
return table.concat({ 'ok', joined, left(state, now), called }, ' ')
