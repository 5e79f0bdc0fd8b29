-- include: lease
-- include: pace
-- cool_down: lets no call start for a while, for everyone; or ends that.
-- Atomic because of several replicas that learn of a limit at once, the longest must count.
-- Run twice, the end moves by the time between the two runs at most.
--
-- KEYS  1 state   hash
--       2 queue   sorted set
-- ARGV  1 term    microseconds from now, at most a day; '0' to end a cool-down
--       2 reason  what Kraken said, shown to those who wait
-- Returns 'ok <left> <reason>', the microseconds that the cool-down goes on and its reason, or 'foreign <value>':
--         nothing changed.
local state, value = load(KEYS[1])
if not state then return 'foreign ' .. value end
local now = clock()
local cool, reason = cooling(state.cool_down, now)
local term = tonumber(ARGV[1])
if term == 0 then
  redis.call('HDEL', KEYS[1], 'cool_down')
  if state.member and not state.lease then wake(state.member) end
  return 'ok 0 '
end
if term > cool then
  cool, reason = term, ARGV[2]
  redis.call('HSET', KEYS[1], 'cool_down', now .. ' ' .. whole(cool) .. ' ' .. reason)
end
local processes = redis.call('ZRANGEBYSCORE', KEYS[2], whole(PROCESSES), '+inf')
if state.member and not state.lease then processes[#processes + 1] = process_of(state.member) end
for _, process in ipairs(processes) do
  redis.call('PUBLISH', 'kraken-nonce:wake:' .. process, 'cool-down ' .. KEYS[1] .. ' ' .. whole(cool) .. ' ' .. reason)
end
return 'ok ' .. whole(cool) .. ' ' .. reason
