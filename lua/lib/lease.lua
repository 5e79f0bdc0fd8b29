-- include: nonce
-- The lock and its queue.
--
-- State hash fields, next to `nonce`:
--   lock      who has the lock: '<lease> <since> <term> <ticket> <member>', absent when it is free.
--             lease   first nonce of the lease; '-' while the lock is only offered to the member; '~<asked>' while it
--                     is offered for a later time and high-priority waiters may go before the member, one after the
--                     other: of those in the queue the first with a ticket above `asked` was told so at `since`
--             since   start of the lease or offer, server time in microseconds
--             term    its length in microseconds
--             ticket  the member's place in the queue, '0' if it was never there; for a lease, the number of its
--                     last extension, '0' for none
--             member  '<process>:<number>-<round trip>.<random>', and ':<token>' if the caller gave one
--                     round trip  milliseconds, as its process has measured them; without it, the longest that counts
--   ticket    number of places in the queue given out so far
--   overtaken how often in a row a high-priority waiter has gone before a normal one and delayed it
--   lost      the last member whose lease ended without a release
--   gone      members that have left while a request of theirs for the lock might still arrive, the latest 64, with
--             spaces between them
--   intent    what the holder is about to do: '<nonce> <key> <method> <ids>', absent when it changes nothing
--             nonce   nonce of its first request; a pending intent is found by it
--             key     digest of the API key
--             method  Kraken's name
--             ids     the cl_ord_id of each order, percent-encoded, separated by commas, '-' for none; a '+' before
--                     the first says that all were made up for this one call
--   pending:<nonce>  the journal's entry for a call whose outcome its own caller has not told of:
--             '<since> <state> <key> <method> <ids>', and ' <at> <txids>' for the states that are results
--             since   server time in microseconds when it became pending, which is when its lease ended
--             state   'new'; 'found', 'absent', 'partly' or 'unknown': the result that a later holder has found out
--                     and is about to tell; 'reported' once it has told that it is unknown
--             at      server time in microseconds when that was noted
--             txids   Kraken's, percent-encoded, one for each of the ids with ',' between them; '-' for an order that
--                     was not found
--   pending   '<number>' of entries in a state other than 'reported', followed by ' <key>:<number>' for each API key
--             that has any, as far as they fit; absent for none
--
-- Queue, a sorted set, exists only while there are waiters:
--   waiters   member -> ticket (normal priority) or ticket - 4e15 (high)
--   processes process -> 4e15 + the time in microseconds when it joined
-- When a member misses an offer, or its chance to go before another, the entry of its process is removed. So a process
-- that died with many waiters costs the others the time of one offer, and not of one for each waiter.

local PROCESSES = 4e15      -- scores from here on are processes
local WAITERS = '(4000000000000000'
local OFFER = 1200000       -- microseconds that a waiter has to take the lock, from the time that it is offered for,
local LONGEST_WAY = 400     -- and those of its process's round trip, of which so many milliseconds count at most
local QUEUE_LIFE = '10000'  -- milliseconds after the last heartbeat of any waiter
local MOST_OVERTAKINGS = 10
local MOST_GONE = 64

local LONGEST = 8192        -- bytes of a value
local DIGITS = 16           -- of a number that a Lua number can hold

-- strange(state, field, value): leaves a field out of `state`, since its value is not ours; `foreign` names the first.
local function strange(state, field, value)
  state.foreign = state.foreign or named(field, value)
  state[field] = nil
end

-- read(key): reads the state. Fields with values that are not ours are left out, as `strange` does, and `foreign_lock`
-- names such a lock. Returns nil and a name for it when the key is no hash.
local function read(key)
  local fields = redis.pcall(
    'HMGET', key, 'nonce', 'lock', 'pace', 'cool_down', 'intent', 'pending', 'gone', 'ticket', 'overtaken'
  )
  if fields.err then
    local failure = tostring(fields.err)
    if not failure:find('WRONGTYPE', 1, true) then redis.call('HMGET', key, 'nonce') end -- raises it
    return nil, '- ' .. failure
  end
  local held, pace, cool_down, intent = fields[2], fields[3], fields[4], fields[5]
  local pending, gone, place, overtaken = fields[6], fields[7], fields[8], fields[9]
  local state = {
    key = key, nonce = fields[1] or nil, pace = pace, cool_down = cool_down, intent = intent, pending = pending or '0',
    gone = gone,
  }
  if foreign(state.nonce) then strange(state, 'nonce', state.nonce) end
  if held then
    local lease, since, term, ticket, member = held:match('^([-~%d]%d*) (%d+) (%d+) (%d+) ([!-9;-~]+:%S.*)$')
    local leased = lease and #lease <= 19 and lease >= '1' and (lease <= HIGHEST or #lease < 19 and lease < ':')
    local asked = lease and not leased and lease:match('^~(%d*)$')
    if not (leased or lease == '-' or asked and #asked <= DIGITS)
      or #since > DIGITS or #term > DIGITS or #ticket > DIGITS or #held > LONGEST then
      strange(state, 'lock', held)
      state.foreign_lock = named('lock', held)
    else
      state.since, state.term, state.ticket, state.member = since, term, ticket, member
      state.lease, state.asked = leased and lease or nil, asked and (tonumber(asked) or 0) or nil
    end
  end
  if pace and (#pace > LONGEST or not pace:find('^%d+ %d+ %d+[ %d]*$')) then strange(state, 'pace', pace) end
  if cool_down then
    local since, term = cool_down:match('^(%d+) (%d+) ')
    if not since or #since > DIGITS or #term > DIGITS or #cool_down > LONGEST then
      strange(state, 'cool_down', cool_down)
    end
  end
  if intent and (#intent > LONGEST or not intent:find('^[1-9]%d* %S+ %S+ %S+$') or foreign(intent:match('^%d+'))) then
    strange(state, 'intent', intent)
  end
  if pending then
    local number, keys = pending:sub(1, LONGEST + 1):match('^(%d+)(.*)$')
    if not number or #number > DIGITS or #pending > LONGEST or keys:gsub(' %S+:%d+', '') ~= '' then
      strange(state, 'pending', pending)
    end
  end
  if gone and (#gone > LONGEST or not gone:find('^[!-9;-~]+:%S+')) then strange(state, 'gone', gone) end
  if place and (#place > DIGITS or not place:find('^%d+$')) then strange(state, 'ticket', place) end
  if overtaken and (#overtaken > DIGITS or not overtaken:find('^%d+$')) then strange(state, 'overtaken', overtaken) end
  return state
end

-- load(key): reads the state; returns nil and the name of a field with a value that is not ours, if there is one.
local function load(key)
  local state, value = read(key)
  if state and state.foreign then return nil, state.foreign end
  return state, value
end

-- lock(state, lease, since, term, ticket, member, asked): puts a lease, or an offer if `lease` is nil, into `state`;
-- returns the value for the field `lock`.
local function lock(state, lease, since, term, ticket, member, asked)
  state.lease, state.asked = lease, asked
  state.since, state.term, state.ticket, state.member = since, term, ticket, member
  if not lease then lease = asked and '~' .. whole(asked) or '-' end
  return lease .. ' ' .. since .. ' ' .. term .. ' ' .. ticket .. ' ' .. member
end

local function process_of(member)
  return member:match('^[^:]+')
end

-- patience(member): microseconds that a waiter has to take the lock, from the time that it is offered for.
local function patience(member)
  local round_trip = member:match('^[^:]+:%d+%-(%d+)%.')
  return OFFER + math.min(tonumber(round_trip) or LONGEST_WAY, LONGEST_WAY) * 1000
end

-- left(state, now): microseconds until the lease or offer ends, or the chance of the waiter that is `invited` to go
-- before the member, as a string.
local function left(state, now)
  if not state.member then return '0' end
  local ends = math.min(state.since - now, 0) + state.term
  if state.invited then ends = math.min(ends, state.since - now + patience(state.invited)) end
  return whole(math.max(ends, 0))
end

-- without_token(member): what identifies a member, without the caller's own token, which may hold anything.
local function without_token(member)
  return member:match('^[^:]+:[^: ]+')
end

-- has_left(state, member): whether a member is among those that are gone.
local function has_left(state, member)
  return state.gone and (' ' .. state.gone .. ' '):find(' ' .. without_token(member) .. ' ', 1, true) ~= nil
end

-- note_gone(state, member): lets a request for the lock that arrives late find that its member is gone. Out of memory
-- must not keep what is being released, so this fails in silence.
local function note_gone(state, member)
  if state.foreign then return end
  local members = { without_token(member) }
  for other in (state.gone or ''):gmatch('%S+') do
    if #members < MOST_GONE and other ~= members[1] then members[#members + 1] = other end
  end
  redis.pcall('HSET', state.key, 'gone', table.concat(members, ' '))
end

-- remove(queue, member, process): removes a waiter, and its process if one is given; returns whether it was there.
local function remove(queue, member, process)
  if process then redis.call('ZREM', queue, process) end
  if redis.call('ZREM', queue, member) == 0 then return false end
  local others = redis.call('ZRANGEBYSCORE', queue, '-inf', WAITERS, 'LIMIT', 0, 1)
  if not others[1] then redis.call('DEL', queue) end
  return true
end

-- is_entry(entry): whether a stored value is an entry of the journal.
local function is_entry(entry)
  if #entry > 2 * LONGEST then return false end
  local since, word, result = entry:match('^(%d+) (%l+) %S+ %S+ %S+(.*)$')
  if not since or #since > DIGITS then return false end
  if word == 'new' or word == 'reported' then return result == '' end
  local at = result:match('^ (%d+) %S+$')
  return at ~= nil and #at <= DIGITS and (' found absent partly unknown '):find(' ' .. word .. ' ', 1, true) ~= nil
end

-- recount(key): sets the field `pending` by the entries themselves and returns it. So whatever has happened to entries
-- or to the field, it is right again after the next change.
local function recount(key)
  local number, counts, words, size = 0, {}, {}, 0
  local fields = redis.call('HGETALL', key)
  for i = 1, #fields, 2 do
    local entry = fields[i + 1]
    if fields[i]:find('^pending:') and is_entry(entry) and not entry:find('^%d+ reported ') then
      local api_key = entry:match('^%d+ %l+ (%S+)')
      number = number + 1
      counts[api_key] = (counts[api_key] or 0) + 1
    end
  end
  if number == 0 then
    redis.call('HDEL', key, 'pending')
    return '0'
  end
  for api_key, count in pairs(counts) do
    local word = ' ' .. api_key .. ':' .. whole(count)
    size = size + #word
    if size < LONGEST - DIGITS then words[#words + 1] = word end
  end
  local pending = whole(number) .. table.concat(words)
  redis.call('HSET', key, 'pending', pending)
  return pending
end

-- shelve(state, since): makes the intent of the lease pending, since then.
local function shelve(state, since)
  if not state.intent then return end
  local nonce, intent = state.intent:match('^(%d+) (.+)$')
  redis.call('HSET', state.key, 'pending:' .. nonce, since .. ' new ' .. intent)
  redis.call('HDEL', state.key, 'intent')
  state.intent = nil
  if state.pending then state.pending = recount(state.key) end
end

-- close_if_over(state, queue, now): closes a lease or offer that ran out; returns whether none is running.
local function close_if_over(state, queue, now)
  if not state.member then return true end
  if greater(state.since, now) then -- the server's clock was set back; that must not make the lease longer
    local value = lock(state, state.lease, now, state.term, state.ticket, state.member, state.asked)
    redis.call('HSET', state.key, 'lock', value)
  end
  if now - state.since < tonumber(state.term) then return false end
  if state.lease then
    redis.call('HSET', state.key, 'lost', state.member)
    shelve(state, whole(state.since + state.term))
  else
    redis.call('ZREM', queue, process_of(state.member))
  end
  return true
end

-- count_overtaking(state): counts that a high-priority waiter goes before a normal one; returns whether it may.
local function count_overtaking(state)
  return redis.call('HINCRBY', state.key, 'overtaken', 1) <= MOST_OVERTAKINGS
end

-- first_waiter(state, queue): the next member, its ticket, and whether there are other waiters.
local function first_waiter(state, queue)
  local two = redis.call('ZRANGEBYSCORE', queue, '-inf', WAITERS, 'WITHSCORES', 'LIMIT', 0, 2)
  local member, score, more = two[1], tonumber(two[2]), two[3] ~= nil
  if not member then return nil end
  if score < 0 then
    local normal = redis.call('ZRANGEBYSCORE', queue, '0', WAITERS, 'WITHSCORES', 'LIMIT', 0, 1)
    if not normal[1] or count_overtaking(state) then return member, score + PROCESSES, more end
    member, score = normal[1], tonumber(normal[2])
  end
  return member, score, more
end

-- dequeue(state, queue): removes the next waiter whose process is alive; returns it and its ticket, or nil.
local function dequeue(state, queue)
  if redis.call('EXISTS', queue) == 0 then return nil end
  while true do -- each round removes a waiter that joined once, so rounds are at most as many as joins
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

-- wake(member): tells a member to ask again.
local function wake(member)
  redis.call('PUBLISH', 'kraken-nonce:wake:' .. process_of(member), member)
end

-- offer(state, member, ticket, now): offers the lock to a waiter and wakes it.
local function offer(state, member, ticket, now)
  redis.call('HSET', state.key, 'lock', lock(state, nil, now, whole(patience(member)), whole(ticket), member))
  wake(member)
end

-- due(state): when the member that the lock is offered to may start.
local function due(state)
  return state.since + state.term - patience(state.member)
end

-- first_to_ask(state, queue): the first high-priority waiter that may go before the member that the lock is booked for
-- and has not asked for it, and its ticket; nil if there is none.
local function first_to_ask(state, queue)
  local after = '(' .. whole(state.asked - PROCESSES)
  local found = redis.call('ZRANGEBYSCORE', queue, after, '(0', 'WITHSCORES', 'LIMIT', 0, 1)
  return found[1], found[1] and tonumber(found[2]) + PROCESSES
end

-- invite(state, queue, now, asked): books the lock for the member in `state` and tells the first high-priority waiter
-- with a ticket above `asked` that it may go before it. Returns that waiter and its ticket, or nil.
local function invite(state, queue, now, asked)
  state.asked, state.invited = asked, nil
  local member, ticket = first_to_ask(state, queue)
  while member and not redis.call('ZSCORE', queue, process_of(member)) do
    remove(queue, member)
    member, ticket = first_to_ask(state, queue)
  end
  redis.call('HSET', state.key, 'lock', lock(state, nil, now, left(state, now), state.ticket, state.member, asked))
  if member then wake(member) end
  state.invited = member
  return member, ticket
end

-- invited(state, queue, now): the high-priority waiter whose turn it is to go before the member that the lock is booked
-- for, and its ticket; nil if there is none. One that has not asked in the time of an offer loses its place.
local function invited(state, queue, now)
  local member, ticket = first_to_ask(state, queue)
  if member and now - state.since >= patience(member) then
    remove(queue, member, process_of(member))
    member, ticket = invite(state, queue, now, state.asked)
  end
  state.invited = member
  return member, ticket
end

-- queue_up(queue, member, score, now): puts a waiter into the queue and marks its process as alive; returns the score
-- of the process, which says when it joined.
local function queue_up(queue, member, score, now)
  local process = process_of(member)
  redis.call('ZADD', queue, 'NX', whole(score), member, whole(PROCESSES + now), process)
  redis.call('PEXPIRE', queue, QUEUE_LIFE)
  return redis.call('ZSCORE', queue, process)
end

-- free(state): frees the lock. It needs no memory, and after it a server that is out of memory takes the rest as well.
local function free(state)
  redis.call('HDEL', state.key, 'lock')
  state.member, state.lease, state.asked = nil, nil, nil
end

-- offer_next(state, queue): offers a free lock to the next waiter, unless all would be refused for a foreign value.
local function offer_next(state, queue)
  if state.foreign then return end
  local member, ticket = dequeue(state, queue)
  if member then offer(state, member, ticket, clock()) end
end

-- hand_over(state, queue): frees the lock and offers it to the next waiter.
local function hand_over(state, queue)
  free(state)
  offer_next(state, queue)
end
