-- include: state
-- include: decimal
-- include: block
-- The queue of an API key, a sorted set that exists only while there are waiters:
--   waiters   member -> ticket (normal priority) or ticket - 4e15 (high)
--   processes process -> 4e15 + the time in microseconds when it joined
--             '=' and a process -> 4e15: a message to this process was seen to be counted by PUBLISH
-- When a member misses an offer, or its chance to go before another, the entries of its process are removed. So a
-- process that died with many waiters costs the others the time of one offer, and not of one for each waiter. It costs
-- them nothing where PUBLISH, which was right about that process before, now says that nobody hears it: then it is
-- passed. Whoever lost its place so asks again, with the ticket that it had, as soon as it listens again or sends a
-- heartbeat.

local PROCESSES = 4e15      -- scores from here on are processes
local WAITERS = '(4000000000000000'
local OFFER = 1200000       -- microseconds that a waiter has to take the lock, from the time that it is offered for,
local LONGEST_WAY = 400     -- and those of its process's round trip, of which so many milliseconds count at most
local QUEUE_LIFE = '10000'  -- milliseconds after the last heartbeat of any waiter
local MOST_OVERTAKINGS = 10

-- left(now): microseconds until the lease or offer ends, or the chance of the waiter that is `invited` to go
-- before the member, as a string.
local function left(now)
  if not state.member then return '0' end
  local ends = math.min(state.since - now, 0) + state.term
  if state.chance then ends = math.min(ends, state.since - now + state.chance) end
  return whole(math.max(ends, 0))
end

-- write_lock(lease, since, term, ticket, member, asked): sets the lock, for a lease, or for an offer if that is nil.
local function write_lock(lease, since, term, ticket, member, asked)
  state.lease, state.asked = lease, asked
  state.since, state.term, state.ticket, state.member = since, term, ticket, member
  if not lease then lease = asked and '~' .. whole(asked) or '-' end
  redis.call('HSET', KEYS[1], 'lock', lock(lease, since, term, ticket, member))
end

-- free(): frees the lock. It needs no memory, and after it a server that is out of memory takes the rest as well.
local function free()
  redis.call('HDEL', KEYS[1], 'lock')
  state.member, state.lease, state.asked = nil, nil, nil
end

local function process_of(member)
  return member:match('^[^:]+')
end

-- forget_process(member): removes the entries of a member's process, so that all its waiters have to ask again.
local function forget_process(member)
  local process = process_of(member)
  redis.call('ZREM', KEYS[2], process, '=' .. process)
end

-- queue_up(member, score, now, heard): puts a waiter into the queue and marks its process as alive, and as
-- `heard` if PUBLISH has counted it; returns the score of the process, which says when it joined.
local function queue_up(member, score, now, heard)
  local process = process_of(member)
  if heard then
    redis.call('ZADD', KEYS[2], 'NX', whole(score), member, whole(PROCESSES + now), process, whole(PROCESSES),
      '=' .. process)
  else
    redis.call('ZADD', KEYS[2], 'NX', whole(score), member, whole(PROCESSES + now), process)
  end
  redis.call('PEXPIRE', KEYS[2], QUEUE_LIFE)
  return redis.call('ZSCORE', KEYS[2], process)
end

-- take_ticket(now): gives out the next place in the queue.
local function take_ticket(now)
  local ticket = math.max(tonumber(state.place or 0) + 1, tonumber(now))
  state.place = whole(ticket)
  redis.call('HSET', KEYS[1], 'ticket', state.place)
  return ticket
end

-- call(member, message): sends a message to the process of a member; returns how many hear it, as far as this server
-- knows: one behind a proxy or at another node of a cluster is not counted.
local function call(member, message)
  return redis.call('PUBLISH', 'kraken-nonce:wake:' .. process_of(member), message)
end

-- wake(member): tells a waiter to ask for the lock; returns whether it is alive, as far as this server can know.
-- If it is not, its process is forgotten.
local function wake(member)
  local process = process_of(member)
  if not redis.call('ZSCORE', KEYS[2], process) then return false end
  if call(member, member) > 0 or not redis.call('ZSCORE', KEYS[2], '=' .. process) then return true end
  forget_process(member)
  return false
end

-- count_overtaking(): counts that a high-priority waiter goes before a normal one; returns whether it may.
local function count_overtaking()
  local times = (state.overtaken or 0) + 1
  state.overtaken = times
  redis.call('HSET', KEYS[1], 'overtaken', whole(times))
  return times <= MOST_OVERTAKINGS
end

-- first_waiter(): the next member, its ticket, and whether there are other waiters.
local function first_waiter()
  local two = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', WAITERS, 'WITHSCORES', 'LIMIT', 0, 2)
  local member, score, more = two[1], tonumber(two[2]), two[3] ~= nil
  if not member then return nil end
  if score < 0 then
    local normal = redis.call('ZRANGEBYSCORE', KEYS[2], '0', WAITERS, 'WITHSCORES', 'LIMIT', 0, 1)
    if not normal[1] or count_overtaking() then return member, score + PROCESSES, more end
    member, score = normal[1], tonumber(normal[2])
  end
  return member, score, more
end

-- dequeue(asking): removes the next waiter that is alive, and wakes it unless it is the one `asking`;
-- returns it and its ticket, or nil.
local function dequeue(asking)
  while true do -- each round removes a waiter that joined once, so rounds are at most as many as joins
    local member, ticket, more = first_waiter()
    if not member then return nil end
    local alive = member == asking or wake(member)
    if more then
      redis.call('ZREM', KEYS[2], member)
    else
      redis.call('DEL', KEYS[2])
    end
    if alive then return member, ticket end
  end
end

-- patience(member): microseconds that a waiter has to take the lock, from the time that it is offered for.
local function patience(member)
  local round_trip = member:match('^[^:]+:%d+%-(%d+)%.')
  return OFFER + math.min(tonumber(round_trip) or LONGEST_WAY, LONGEST_WAY) * 1000
end

-- offer(member, ticket, now): offers the lock to a waiter, which somebody wakes.
local function offer(member, ticket, now)
  write_lock(nil, now, whole(patience(member)), whole(ticket), member)
end

-- offer_next(now): offers a free lock to the next waiter. It doesn't where all would be refused: for a
-- foreign value, or since a state of the first version has not been taken over.
local function offer_next(now)
  if state.foreign or state.version ~= VERSION then return end
  local member, ticket = dequeue()
  if member then offer(member, ticket, now) end
end

-- hand_over(now): frees the lock and offers it to the next waiter.
local function hand_over(now)
  free()
  offer_next(now)
end

-- remove(member): removes a waiter; returns whether it was there.
local function remove(member)
  if redis.call('ZREM', KEYS[2], member) == 0 then return false end
  local others = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', WAITERS, 'LIMIT', 0, 1)
  if not others[1] then redis.call('DEL', KEYS[2]) end
  return true
end
