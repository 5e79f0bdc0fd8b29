-- include: changes
-- How leases and offers end, and members leave.

local MOST_GONE = 64

-- close_if_over(now): closes a lease or offer that ran out; returns whether none is running.
local function close_if_over(now)
  if not state.member then return true end
  if greater(state.since, now) then -- the server's clock was set back; that must not make the lease longer
    write_lock(state.lease, now, state.term, state.ticket, state.member, state.asked)
  end
  if now - state.since < tonumber(state.term) then return false end
  if state.lease then
    local ended = state.since + state.term
    redis.call('HSET', KEYS[1], 'lost', state.member)
    local name, method = state.member:match(WHO)
    local held = ended - (state.ticket:match('%.(%d+)$') or state.since)
    note(LOG, 'lost', state.lease, name, method, 'held', whole(held), 'ago', whole(now - ended))
    shelve(whole(ended))
  else
    forget_process(state.member)
  end
  return true
end

-- id_of(member): what identifies a member. What follows is for people, and the token may hold anything.
local function id_of(member)
  return member:match('^[^:]+:[^| ]+')
end

-- has_left(member): whether a member is among those that are gone.
local function has_left(member)
  return state.gone and (' ' .. state.gone .. ' '):find(' ' .. id_of(member) .. ' ', 1, true) ~= nil
end

-- note_gone(member): lets a request for the lock that arrives late find that its member is gone. Out of memory
-- must not keep what is being released, so this fails in silence.
local function note_gone(member)
  if state.foreign then return end
  local members = { id_of(member) }
  for other in (state.gone or ''):gmatch('%S+') do
    if #members < MOST_GONE and other ~= members[1] then members[#members + 1] = other end
  end
  redis.pcall('HSET', KEYS[1], 'gone', table.concat(members, ' '))
end
