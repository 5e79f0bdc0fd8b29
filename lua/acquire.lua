-- acquire: gets the lock and a block of nonces, or a place in the queue.
-- Atomic because lock and nonces must be taken at the same moment: the holder must have the highest nonces.
-- Run twice with the same member, it returns the same lease or the same place in the queue.
-- The first write sets lock and nonce together, so a server that is out of memory changes nothing.
-- Each run makes the functions anew, so parts are included where those cases are done with that need no more.
--
-- KEYS  1 state     hash
--       2 queue     sorted set
--       3 log       stream, lib/trail.lua; may be missing
-- ARGV  1 floor     decimal ns, highest nonce that the caller has seen, '0' for none
--       2 member    as in lib/state.lua, unique for this acquisition
--       3 term      length of the lease in microseconds
--       4 count     nonces in the lease's block
--       5 ticket    '' not to wait, '0' to join the queue, or the ticket of the place that the member had
--       6 priority  'normal' or 'high'
--       7 pace      settings as in lib/pace.lua
--       8 intent    '<key> <method> <ids> <name>' as in lib/state.lua, '' for a call that changes nothing
--       9 heard     '1' when PUBLISH was seen to count the member's process, '?' to try that, '0' for neither
-- Returns 'granted <first nonce> <left> <pending>': the lease, which ends in `left` microseconds; `pending` is as in
--         lib/journal.lua, or '0': how many calls of earlier holders wait to be settled or told, and of which API keys
--         'waiting <ticket> <joined> <left> <cool> <heard> <reason>': queued; `joined` identifies this stay of the
--         process in the queue; `left` as in heartbeat; the cool-down ends in `cool` microseconds, 0 for none; `heard`
--         is '1' when PUBLISH counts the process, as far as it was tried or said
--         'booked <ticket> <wait> <cause>': first in line, but the pace allows the call only in `wait` microseconds:
--         ask again then, and send heartbeats if that is more than 5 s; `cause` is interval, startup or counter, or
--         'cool-down <reason>'
--         'busy <left> <cause>': not available now, and the caller does not wait; `cause` as above, 'held', or 'gone'
--         for a member that has left
--         'foreign <field> <value>' or 'overflow <stored>': nothing changed
local LOG = KEYS[3]
-- include: ours
-- include: block
-- include: trail
local member, ticket, high = ARGV[2], ARGV[5], ARGV[6] == 'high'
local waits = ticket ~= ''
local waited = waits and ticket ~= '0'
local now = clock()
local new_pace

-- The lock is free: most runs have no more to do than to grant it. Nobody waits for a free lock, unless the server was
-- out of memory when it was to be offered to the next one; then a heartbeat of that one makes up for it.
local idle = state.nonce and not (state.member or state.intent or state.gone)
if not idle or state.cool_down or ARGV[7] ~= '' then
  -- include: pace
  local wait, cause, settings, pace
  if idle then wait, cause, settings, pace = may_start(now, ARGV[7]) end
  if wait ~= 0 then
    -- include: queue
    if state.lease and state.member == member then
      return 'granted ' .. state.lease .. ' ' .. left(now) .. ' ' .. state.pending
    end

    -- leave_to_others(queued): puts the member into the queue if it waits, and then calls `queued` with its ticket, if
    -- that is given; returns the reply.
    local function leave_to_others(queued)
      local cool, reason = cooling(state.cool_down, now)
      if not waits then
        if cool > 0 then return 'busy ' .. whole(cool) .. ' cool-down ' .. reason end
        return 'busy ' .. left(now) .. ' held'
      end
      local score = tonumber(redis.call('ZSCORE', KEYS[2], member) or nil)
      if not score then
        score = waited and tonumber(ticket) or take_ticket(now)
        if tonumber(state.place or 0) < score then redis.call('HSET', KEYS[1], 'ticket', ticket) end -- state was lost
        if high then score = score - PROCESSES end
      end
      local heard = ARGV[9] == '1' or ARGV[9] == '?' and call(member, '') > 0
      local joined = queue_up(member, score, now, heard)
      if score < 0 then score = score + PROCESSES end
      if queued then queued(score) end
      local said = heard and '1' or '0'
      return table.concat({ 'waiting', whole(score), joined, left(now), whole(cool), said, reason }, ' ')
    end
    local running = state.lease and not greater(state.since, now) and now - state.since < tonumber(state.term)
    if running and not state.gone then return leave_to_others() end

    -- include: ending
    -- include: booking
    if has_left(member) then return 'busy 0 gone' end

    -- Whose turn is it? One of high priority may go before the member that the lock is booked for, if it is the first.
    local mine, may_go_before = idle or state.member == member, false
    if not mine then
      if close_if_over(now) then
        local next_member, next_ticket = dequeue(member)
        mine = next_member == nil or next_member == member
        if not mine then offer(next_member, next_ticket, now) end
      elseif high and state.asked then
        local first, first_ticket = invited(now)
        may_go_before = not first or first == member or waited and tonumber(ticket) < first_ticket
      end
    end
    if mine or may_go_before then wait, cause, settings, pace = may_start(now, ARGV[7]) end

    -- Go before the member that the lock is booked for, which gets its place in the queue back.
    local refused = false
    if may_go_before and (wait == 0 or waits) then
      refused = delays(due(), now + wait, settings) and not count_overtaking()
      if not refused then
        queue_up(state.member, tonumber(state.ticket), now)
        redis.call('ZREM', KEYS[2], member)
        mine = true
      end
    end

    if not mine then
      return leave_to_others(refused and function(place) invite(now, math.max(place, state.asked)) end)
    end
    if wait > 0 and not waits then
      hand_over(now)
      return 'busy ' .. whole(wait) .. ' ' .. cause
    end
    if wait > 0 then -- book it for the time when the call may start
      if not waited then ticket = whole(take_ticket(now)) end
      write_lock(nil, now, whole(wait + patience(member)), ticket, member)
      if not high then invite(now, 0) end
      return 'booked ' .. ticket .. ' ' .. whole(wait) .. ' ' .. cause
    end
  end
  new_pace = pace and start(pace, settings, tonumber(now))
end

-- Grant it.
local first, last, healed = allocate(state.nonce, ARGV[1], now, tonumber(ARGV[4]))
if not first then return 'overflow ' .. (state.nonce or ARGV[1]) end
local held = lock(first, now, ARGV[3], waited and '0.' .. ticket .. '.' .. now or '0', member)
if new_pace or ARGV[8] ~= '' then
  local more = new_pace and { 'pace', new_pace } or {}
  if ARGV[8] ~= '' then
    more[#more + 1], more[#more + 2] = 'intent', first .. ' ' .. ARGV[8]
  end
  redis.call('HSET', KEYS[1], 'nonce', VERSION .. last, 'lock', held, unpack(more))
else
  redis.call('HSET', KEYS[1], 'nonce', VERSION .. last, 'lock', held)
end
if state.cool_down then redis.call('HDEL', KEYS[1], 'cool_down') end
if state.overtaken and waited and not high then redis.call('HDEL', KEYS[1], 'overtaken') end
if healed then
  local name, method = member:match(WHO)
  note(LOG, 'healed', first, name, method, 'floor', ARGV[1], 'stored', state.nonce or '')
end
return 'granted ' .. first .. ' ' .. ARGV[3] .. ' ' .. state.pending
