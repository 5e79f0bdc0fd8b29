-- include: lease
-- include: pace
-- acquire: takes the lock and a block of nonces, or a place in the queue.
-- Atomic because lock and nonce must come from one moment: whoever holds the lock has the highest nonces.
-- Run twice with the same member, it returns the same lease or the same place.
-- The first write sets lock and nonce together, so that out of memory changes nothing.
--
-- KEYS  1 state     hash
--       2 queue     sorted set
-- ARGV  1 floor     decimal ns, highest nonce that the caller has seen, '0' for none
--       2 member    "<process>:<number or token>", unique for this acquisition
--       3 term      length of the lease in microseconds
--       4 count     nonces in the lease's block
--       5 ticket    '' not to wait, '0' to wait, or the ticket of the place that the member had
--       6 priority  'normal' or 'high'
--       7 pace      settings as in lib/pace.lua
--       8 intent    '<key> <method> <ids>' as in lib/lease.lua, '' for a call that changes nothing
-- Returns 'granted <first nonce> <left> <pending>': the lease, its end in `left` microseconds, and how many intents of
--         earlier holders wait to be settled
--         'waiting <ticket> <joined> <left> <cool> <reason>': queued; `joined` identifies this stay of the process in
--         the queue; the current lease or call ends in `left` microseconds at the latest; a cool-down goes on for
--         `cool` microseconds, 0 for none
--         'booked <ticket> <wait> <cause>': first in line, to ask again in `wait` microseconds, when the pace allows
--         the call; cause is interval, startup or counter, or 'cool-down <reason>'
--         'busy <left> <cause>': not to be had now, and the caller does not wait; `cause` as above, or 'held'
--         'foreign <value>' or 'overflow <stored>': nothing changed
local member, ticket, high = ARGV[2], ARGV[5], ARGV[6] == 'high'
local state, value = load(KEYS[1])
if not state then return 'foreign ' .. value end
local now = clock()
local mine = state.member == member
local function granted()
  return table.concat({ 'granted', state.lease, left(state, now), state.pending }, ' ')
end
if mine and state.lease then return granted() end

local wait, cause, settings, pace
local function look_at_pace()
  local reason, since_now, set_back
  wait, reason, since_now = cooling(state.cool_down, now)
  if since_now then redis.call('HSET', KEYS[1], 'cool_down', since_now) end
  cause = 'cool-down ' .. reason
  if ARGV[7] ~= '' then
    settings = numbers(ARGV[7])
    pace, set_back = read_pace(state.pace, settings, tonumber(now))
    if set_back then redis.call('HSET', KEYS[1], 'pace', written(pace)) end
    local at, why = earliest(pace, settings, tonumber(now))
    if at - now > wait then wait, cause = at - now, why end
  end
end

if not mine then
  if ended(state, KEYS[2], now) then
    local next_member, next_ticket = dequeue(state, KEYS[2])
    mine = next_member == nil or next_member == member
    if not mine then call(state, next_member, next_ticket, now) end
  elseif high and state.overtakable then
    look_at_pace()
    if (wait == 0 or ticket ~= '')
      and (not delays(state.since + state.term - CALL, now + wait, settings) or may_overtake(state)) then
      queue_up(KEYS[2], state.member, tonumber(state.ticket), now)
      redis.call('ZREM', KEYS[2], member)
      mine = true
    end
  end
end

if mine then
  if not wait then look_at_pace() end
  local waited = ticket ~= '' and ticket ~= '0'
  if wait == 0 then
    local first, last = allocate(state.nonce, ARGV[1], now, tonumber(ARGV[4]))
    if not first then return 'overflow ' .. (state.nonce or ARGV[1]) end
    local fields = { 'nonce', last, 'lock', lock(state, first, now, ARGV[3], '0', member) }
    if pace then
      fields[5], fields[6] = 'pace', start(pace, settings, tonumber(now))
    end
    if ARGV[8] ~= '' then
      fields[#fields + 1], fields[#fields + 2] = 'intent', first .. ' ' .. ARGV[8]
    end
    redis.call('HSET', KEYS[1], unpack(fields))
    if state.cool_down then redis.call('HDEL', KEYS[1], 'cool_down') end
    if waited and not high then redis.call('HDEL', KEYS[1], 'overtaken') end
    return granted()
  end
  if ticket == '' then
    hand_over(state, KEYS[2])
    return table.concat({ 'busy', whole(wait), cause }, ' ')
  end
  if not waited then ticket = whole(redis.call('HINCRBY', KEYS[1], 'ticket', 1)) end
  redis.call('HSET', KEYS[1], 'lock', lock(state, high and '-' or '~', now, whole(wait + CALL), ticket, member))
  if not high then -- those who came while this one was called may go before it
    for _, other in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', '(0', 'LIMIT', 0, MOST_OVERTAKINGS)) do
      wake(other)
    end
  end
  return table.concat({ 'booked', ticket, whole(wait), cause }, ' ')
end

if ticket == '' then
  local cool, reason = cooling(state.cool_down, now)
  if cool > 0 then return 'busy ' .. whole(cool) .. ' cool-down ' .. reason end
  return 'busy ' .. left(state, now) .. ' held'
end
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
  if high then score = score - PROCESSES end
end
local joined = queue_up(KEYS[2], member, score, now)
if score < 0 then score = score + PROCESSES end
local cool, reason = cooling(state.cool_down, now)
return table.concat({ 'waiting', whole(score), joined, left(state, now), whole(cool), reason }, ' ')
