-- include: nonce
-- The lock and its queue.
--
-- State hash fields, next to `nonce`:
--   lock      who has the lock: '<lease> <since> <term> <ticket> <member>', absent when it is free.
--             lease   first nonce of the lease; '-' while the member is only called to take the lock; '~' while it is
--                     booked, that is, called for a later time, and a waiter of high priority may go before it
--             since   begin of the lease or call, server time in microseconds
--             term    its length in microseconds
--             ticket  the member's place in the queue, '0' if it never was there
--             member  '<process>:<number or token>'
--   ticket    places in the queue given out so far
--   overtaken how often in a row a high-priority waiter went before a waiting normal one and cost it time
--   lost      the last member whose lease ended without its release
--   intent    what the holder is about to do: '<nonce> <key> <method> <ids>', absent when it changes nothing
--             nonce   of its first request, which is also the name of the entry among the pending ones
--             key     digest of the API key
--             method  Kraken's name
--             ids     the cl_ord_id of each order, percent-encoded, with commas between them, '-' for none; with a
--                     '+' before the first if all were made up for this call alone
--   pending:<nonce>  an intent that nobody knows the outcome of: '<since> <state> <key> <method> <ids>'
--             since   server time in microseconds when it became pending
--             state   'new', or 'reported' once a later holder could do no more about it
--   pending   number of the new ones, absent for 0
--
-- Queue, a sorted set, exists only while somebody waits:
--   waiters   member -> ticket (normal priority) or ticket - 4e15 (high)
--   processes process -> 4e15 + the time in microseconds when it joined
-- The entry of a process goes when one of its members lets a call pass, so that a process which died with many
-- waiters costs the others one call and not one each.

local PROCESSES = 4e15      -- scores from here on are processes
local WAITERS = '(4000000000000000'
local CALL = 750000         -- microseconds that a called waiter has to take the lock, from the time it is called for
local QUEUE_LIFE = '10000'  -- milliseconds after the last sign of life of any waiter
local MOST_OVERTAKINGS = 10

-- load(key): the state, or nil and the value when the stored nonce is not ours.
local function load(key)
  local fields = redis.call('HMGET', key, 'nonce', 'lock', 'pace', 'cool_down', 'intent', 'pending')
  local state = {
    key = key, nonce = fields[1] or nil, pace = fields[3], cool_down = fields[4], intent = fields[5],
    pending = fields[6] or '0',
  }
  if foreign(state.nonce) then return nil, state.nonce end
  if fields[2] then
    local lease
    lease, state.since, state.term, state.ticket, state.member = fields[2]:match('^(%S+) (%d+) (%d+) (%d+) (.+)$')
    state.overtakable = lease == '~'
    if lease ~= '-' and lease ~= '~' then state.lease = lease end
  end
  return state
end

-- lock(state, lease, since, term, ticket, member): the value of the field `lock`; the state follows.
local function lock(state, lease, since, term, ticket, member)
  state.since, state.term, state.member = since, term, member
  state.lease = lease ~= '-' and lease ~= '~' and lease or nil
  return lease .. ' ' .. since .. ' ' .. term .. ' ' .. ticket .. ' ' .. member
end

-- left(state, now): microseconds until the lease or call ends, as a string.
local function left(state, now)
  if not state.member then return '0' end
  return whole(math.max(math.min(state.since - now, 0) + state.term, 0))
end

local function process_of(member)
  return member:match('^[^:]+')
end

local function anyone_waits(queue)
  return redis.call('ZRANGEBYSCORE', queue, '-inf', WAITERS, 'LIMIT', 0, 1)[1] ~= nil
end

-- shelve(state, now): makes the intent of the lease a pending one.
local function shelve(state, now)
  if not state.intent then return end
  local nonce, intent = state.intent:match('^(%d+) (.+)$')
  if redis.call('HSET', state.key, 'pending:' .. nonce, now .. ' new ' .. intent) == 1 then
    state.pending = whole(redis.call('HINCRBY', state.key, 'pending', 1))
  end
  redis.call('HDEL', state.key, 'intent')
  state.intent = nil
end

-- strike(key, nonce): removes a pending intent; returns whether there was one.
local function strike(key, nonce)
  local entry = redis.call('HGET', key, 'pending:' .. nonce)
  if not entry then return false end
  redis.call('HDEL', key, 'pending:' .. nonce)
  if entry:find('^%d+ new ') and redis.call('HINCRBY', key, 'pending', -1) <= 0 then
    redis.call('HDEL', key, 'pending')
  end
  return true
end

-- ended(state, queue, now): whether nobody has the lock or a running call for it; settles what ran out.
local function ended(state, queue, now)
  if not state.member then return true end
  if greater(state.since, now) then -- the server's clock went back: the lease must not last longer for it
    local lease = state.lease or state.overtakable and '~' or '-'
    redis.call('HSET', state.key, 'lock', lock(state, lease, now, state.term, state.ticket, state.member))
  end
  if now - state.since < tonumber(state.term) then return false end
  if state.lease then
    redis.call('HSET', state.key, 'lost', state.member)
    shelve(state, now)
  else
    redis.call('ZREM', queue, process_of(state.member))
  end
  return true
end

-- may_overtake(state): whether a waiter of high priority may go before a normal one once more.
local function may_overtake(state)
  return redis.call('HINCRBY', state.key, 'overtaken', 1) <= MOST_OVERTAKINGS
end

-- first_waiter(state, queue): who is next, its ticket, and whether anybody else waits.
local function first_waiter(state, queue)
  local two = redis.call('ZRANGEBYSCORE', queue, '-inf', WAITERS, 'WITHSCORES', 'LIMIT', 0, 2)
  local member, score, more = two[1], tonumber(two[2]), two[3] ~= nil
  if not member then return nil end
  if score < 0 then
    local normal = redis.call('ZRANGEBYSCORE', queue, '0', WAITERS, 'WITHSCORES', 'LIMIT', 0, 1)
    if not normal[1] or may_overtake(state) then return member, score + PROCESSES, more end
    member, score = normal[1], tonumber(normal[2])
  end
  return member, score, more
end

-- dequeue(state, queue): takes the next living waiter out of the queue and returns it and its ticket, or nil.
local function dequeue(state, queue)
  if redis.call('EXISTS', queue) == 0 then return nil end
  while true do -- each round removes a waiter, so its cost was paid when that one joined
    local member, ticket, more = first_waiter(state, queue)
    if not member then return nil end
    local alive = redis.call('ZSCORE', queue, process_of(member))
    if more then
      redis.call('ZREM', queue, member)
    else
      redis.call('DEL', queue)
    end
    if alive then return member, ticket end
  end
end

-- wake(member): lets a member ask again.
local function wake(member)
  redis.call('PUBLISH', 'kraken-nonce:wake:' .. process_of(member), member)
end

-- call(state, member, ticket, now): reserves the lock for a waiter and wakes it.
local function call(state, member, ticket, now)
  redis.call('HSET', state.key, 'lock', lock(state, '-', now, whole(CALL), whole(ticket), member))
  wake(member)
end

-- queue_up(queue, member, score, now): puts a waiter into the queue and marks its process as alive; returns when
-- that one joined.
local function queue_up(queue, member, score, now)
  local process = process_of(member)
  redis.call('ZADD', queue, 'NX', whole(score), member, whole(PROCESSES + now), process)
  redis.call('PEXPIRE', queue, QUEUE_LIFE)
  return redis.call('ZSCORE', queue, process)
end

-- hand_over(state, queue): the lock goes to the next waiter or becomes free.
local function hand_over(state, queue)
  local member, ticket = dequeue(state, queue)
  if member then
    call(state, member, ticket, clock())
  else
    redis.call('HDEL', state.key, 'lock')
    state.member, state.lease = nil, nil
  end
end
