-- cool_down: stops all calls of the key for a while, in every process; or ends a cool-down.
-- Atomic because several processes may learn of a limit at once, and the longest cool-down must win.
-- Run twice, the end moves by at most the time between the two runs.
--
-- KEYS  1 state   hash
--       2 queue   sorted set
--       3 log     stream, lib/trail.lua; may be missing
-- ARGV  1 term    microseconds from now, at most a day; '0' to end a cool-down
--       2 reason  what Kraken said, shown to waiters
--       3 name    of who does it, percent-encoded, for the log
-- Returns 'ok <left> <reason>', the microseconds until the cool-down ends and its reason; 'ended <reason>' when `term`
--         is '0' and there was one, and 'ok 0 ' when there was none; or 'foreign <field> <value>': nothing changed.
--         A term of '0' works with any values in the hash.
local LOG = KEYS[3]
-- include: pace
-- include: booking
-- include: trail
local SAME = 1000000 -- microseconds by which a cool-down can be moved without being another one for the log
local term = tonumber(ARGV[1])
if term > 0 then
  -- include: ours
end
local now = clock()
local cool, reason = cooling(state.cool_down, now)
if term == 0 then
  local removed = redis.call('HDEL', KEYS[1], 'cool_down') == 1
  if state.member and not state.lease and tonumber(now) < due() then
    call(state.member, state.member)
    offer(state.member, state.ticket, now) -- not only for a later time, or one that has died would keep it
  end
  if removed and not state.cool_down then reason = 'a value that is not ours' elseif cool == 0 then return 'ok 0 ' end
  note(LOG, 'cool-down-ended', '', ARGV[3], '', 'reason', reason)
  return 'ended ' .. reason
end
local processes = redis.call('ZRANGEBYSCORE', KEYS[2], '(' .. whole(PROCESSES), '+inf') -- before any write
if term > cool then
  local more = term - cool > SAME or reason ~= ARGV[2]
  cool, reason = term, ARGV[2]
  redis.call('HSET', KEYS[1], 'cool_down', now .. ' ' .. whole(cool) .. ' ' .. reason)
  if more then note(LOG, 'cool-down', '', ARGV[3], '', 'term', whole(cool), 'reason', reason) end
end
if state.member and not state.lease then processes[#processes + 1] = state.member end
for _, process in ipairs(processes) do
  call(process, KEYS[1])
end
return 'ok ' .. whole(cool) .. ' ' .. reason
