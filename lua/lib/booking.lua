-- include: queue
-- An offer for a later time, and those who may go before it.

-- due(): when the member that the lock is offered to may start.
local function due()
  return state.since + state.term - patience(state.member)
end

-- first_to_ask(): the first high-priority waiter that may go before the member that the lock is booked for
-- and has not asked for it, and its ticket; nil if there is none.
local function first_to_ask()
  local after = '(' .. whole(state.asked - PROCESSES)
  local found = redis.call('ZRANGEBYSCORE', KEYS[2], after, '(0', 'WITHSCORES', 'LIMIT', 0, 1)
  return found[1], found[1] and tonumber(found[2]) + PROCESSES
end

-- chance(member): notes who may go before the member that the lock is booked for, nil for nobody.
local function chance(member)
  state.chance = member and patience(member)
end

-- invite(now, asked): books the lock for the member in `state` and tells the first high-priority waiter
-- with a ticket above `asked` that it may go before it. Returns that waiter and its ticket, or nil.
local function invite(now, asked)
  state.asked, state.chance = asked, nil
  local member, ticket = first_to_ask()
  while member and not wake(member) do
    remove(member)
    member, ticket = first_to_ask()
  end
  write_lock(nil, now, left(now), state.ticket, state.member, asked)
  chance(member)
  return member, ticket
end

-- invited(now): the high-priority waiter whose turn it is to go before the member that the lock is booked
-- for, and its ticket; nil if there is none. One that has not asked in the time of an offer loses its place.
local function invited(now)
  local member, ticket = first_to_ask()
  if member and now - state.since >= patience(member) then
    forget_process(member)
    remove(member)
    member, ticket = invite(now, state.asked)
  end
  chance(member)
  return member, ticket
end
