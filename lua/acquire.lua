-- include: lease
-- acquire: takes the lock and a block of nonces, or a place in the queue.
-- Atomic because lock and nonce must come from one moment: whoever holds the lock has the highest nonces.
-- Run twice with the same member, it returns the same lease or the same place.
-- The first write sets lock and nonce together, so that out of memory changes nothing.
--
-- KEYS  1 state     hash
--       2 queue     sorted set
-- ARGV  1 floor     decimal ns, highest nonce that the caller has seen, '0' for none
--       2 member    "<process>:<number>", unique for this acquisition
--       3 term      length of the lease in microseconds
--       4 count     nonces in the lease's block
--       5 ticket    '' not to wait, '0' to wait, or the ticket of the place that the member had
--       6 priority  'normal' or 'high'
-- Returns 'granted <first nonce> <left>': the lease, its end in `left` microseconds
--         'waiting <ticket> <joined> <left>': queued; `joined` identifies this stay of the process in the queue;
--         the current lease or call ends in `left` microseconds at the latest
--         'busy <left>': not free, and the caller does not wait
--         'foreign <value>' or 'overflow <stored>': nothing changed
local member, ticket = ARGV[2], ARGV[5]
local state, value = load(KEYS[1])
if not state then return 'foreign ' .. value end
local now = clock()
local mine = state.member == member
if mine and state.lease then return 'granted ' .. state.lease .. ' ' .. left(state, now) end

if not mine and ended(state, KEYS[2], now) then
  local next_member = dequeue(state, KEYS[2])
  mine = next_member == nil or next_member == member
  if not mine then call(state, next_member, now) end
end

if mine then
  local first, last = allocate(state.nonce, ARGV[1], now, tonumber(ARGV[4]))
  if not first then return 'overflow ' .. (state.nonce or ARGV[1]) end
  redis.call('HSET', KEYS[1], 'nonce', last, 'lock', lock(state, first, now, ARGV[3], member))
  return 'granted ' .. first .. ' ' .. ARGV[3]
end

if ticket == '' then return 'busy ' .. left(state, now) end
local score = tonumber(redis.call('ZSCORE', KEYS[2], member) or nil)
if not score then
  if ticket == '0' then
    score = redis.call('HINCRBY', KEYS[1], 'ticket', 1)
  else
    score = tonumber(ticket)
    if tonumber(redis.call('HGET', KEYS[1], 'ticket') or 0) < score then -- state was lost meanwhile
      redis.call('HSET', KEYS[1], 'ticket', ticket)
    end
  end
  if ARGV[6] == 'high' then score = score - PROCESSES end
  redis.call('ZADD', KEYS[2], whole(score), member)
end
local process = process_of(member)
redis.call('ZADD', KEYS[2], 'NX', whole(PROCESSES + now), process)
redis.call('PEXPIRE', KEYS[2], QUEUE_LIFE)
if score < 0 then score = score + PROCESSES end
return table.concat({ 'waiting', whole(score), redis.call('ZSCORE', KEYS[2], process), left(state, now) }, ' ')
