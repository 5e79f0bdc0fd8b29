-- include: lease
-- include: pace
-- acquire: gets the lock and a block of nonces, or a place in the queue.
-- Atomic because lock and nonces must be taken at the same moment: the holder must have the highest nonces.
-- Run twice with the same member, it returns the same lease or the same place in the queue.
-- The first write sets lock and nonce together, so a server that is out of memory changes nothing.
--
-- KEYS  1 state     hash
--       2 queue     sorted set
-- ARGV  1 floor     decimal ns, highest nonce that the caller has seen, '0' for none
--       2 member    as in lib/lease.lua, unique for this acquisition
--       3 term      length of the lease in microseconds
--       4 count     nonces in the lease's block
--       5 ticket    '' not to wait, '0' to join the queue, or the ticket of the place that the member had
--       6 priority  'normal' or 'high'
--       7 pace      settings as in lib/pace.lua
--       8 intent    '<key> <method> <ids>' as in lib/lease.lua, '' for a call that changes nothing
-- Returns 'granted <first nonce> <left> <pending>': the lease, which ends in `left` microseconds; `pending` is as in
--         lib/lease.lua, or '0': how many calls of earlier holders wait to be settled or told, and of which API keys
--         'waiting <ticket> <joined> <left> <cool> <reason>': queued; `joined` identifies this stay of the process in
--         the queue; `left` as in heartbeat; the cool-down ends in `cool` microseconds, 0 for none
--         'booked <ticket> <wait> <cause>': first in line, but the pace allows the call only in `wait` microseconds:
--         ask again then, and send heartbeats if that is more than 5 s; `cause` is interval, startup or counter, or
--         'cool-down <reason>'
--         'busy <left> <cause>': not available now, and the caller does not wait; `cause` as above, 'held', or 'gone'
--         for a member that has left
--         'foreign <field> <value>' or 'overflow <stored>': nothing changed
local member, ticket, high = ARGV[2], ARGV[5], ARGV[6] == 'high'
local waits = ticket ~= ''
local waited = waits and ticket ~= '0'
local state, value = load(KEYS[1])
if not state then return 'foreign ' .. value end
if has_left(state, member) then return 'busy 0 gone' end
local now = clock()
local mine = state.member == member
local function granted()
  return table.concat({ 'granted', state.lease, left(state, now), state.pending }, ' ')
end
if mine and state.lease then return granted() end

-- Whose turn is it? One of high priority may go before the member that the lock is booked for, when it is the first.
local may_go_before = false
if not mine then
  if close_if_over(state, KEYS[2], now) then
    local next_member, next_ticket = dequeue(state, KEYS[2])
    mine = next_member == nil or next_member == member
    if not mine then offer(state, next_member, next_ticket, now) end
  elseif high and state.asked then
    local first, first_ticket = invited(state, KEYS[2], now)
    may_go_before = not first or first == member or waited and tonumber(ticket) < first_ticket
  end
end

-- When may its call start?
local wait, cause, settings, pace
if mine or may_go_before then
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

-- Go before the member that the lock is booked for, which gets its place in the queue back.
local refused = false
if may_go_before and (wait == 0 or waits) then
  refused = delays(due(state), now + wait, settings) and not count_overtaking(state)
  if not refused then
    queue_up(KEYS[2], state.member, tonumber(state.ticket), now)
    redis.call('ZREM', KEYS[2], member)
    mine = true
  end
end

-- Grant the lock now.
if mine and wait == 0 then
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

-- Book it for the time when the call may start.
if mine and waits then
  if not waited then ticket = whole(redis.call('HINCRBY', KEYS[1], 'ticket', 1)) end
  local booked = lock(state, nil, now, whole(wait + patience(member)), ticket, member)
  if high then
    redis.call('HSET', KEYS[1], 'lock', booked)
  else
    invite(state, KEYS[2], now, 0)
  end
  return table.concat({ 'booked', ticket, whole(wait), cause }, ' ')
end

-- Leave it to others.
if mine then
  hand_over(state, KEYS[2])
  return table.concat({ 'busy', whole(wait), cause }, ' ')
end
local cool, reason = cooling(state.cool_down, now)
if not waits then
  if cool > 0 then return 'busy ' .. whole(cool) .. ' cool-down ' .. reason end
  return 'busy ' .. left(state, now) .. ' held'
end

-- Wait in the queue.
local score = tonumber(redis.call('ZSCORE', KEYS[2], member) or nil)
if not score then
  if not waited then
    score = redis.call('HINCRBY', KEYS[1], 'ticket', 1)
  else
    score = tonumber(ticket)
    if tonumber(redis.call('HGET', KEYS[1], 'ticket') or 0) < score then -- state was lost in the meantime
      redis.call('HSET', KEYS[1], 'ticket', ticket)
    end
  end
  if high then score = score - PROCESSES end
end
local joined = queue_up(KEYS[2], member, score, now)
if score < 0 then score = score + PROCESSES end
if refused then invite(state, KEYS[2], now, math.max(score, state.asked)) end
return table.concat({ 'waiting', whole(score), joined, left(state, now), whole(cool), reason }, ' ')
