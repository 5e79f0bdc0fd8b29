-- include: journal
-- include: trail
-- How the journal changes.

-- note_call(kind, nonce, intent, ...): adds an entry about a call, '<key> <method> <ids> <name>', to the trail.
local function note_call(kind, nonce, intent, ...)
  local api_key, method, ids, name = intent:match('^(%S+) (%S+) (%S+) ?(%S*)')
  note(LOG, kind, nonce, name, method, 'key', api_key, 'ids', ids, ...)
end

-- recount(): sets the field `pending` by the entries themselves and returns it. So whatever has happened to entries
-- or to the field, it is right again after the next change.
local function recount()
  local number, counts, words, size = 0, {}, {}, 0
  local fields = redis.call('HGETALL', KEYS[1])
  for i = 1, #fields, 2 do
    local entry = fields[i + 1]
    if fields[i]:find('^pending:') and is_entry(entry) and not entry:find('^%d+ reported ') then
      local api_key = entry:match('^%d+ %l+ (%S+)')
      number = number + 1
      counts[api_key] = (counts[api_key] or 0) + 1
    end
  end
  if number == 0 then
    redis.call('HDEL', KEYS[1], 'pending')
    return '0'
  end
  for api_key, count in pairs(counts) do
    local word = ' ' .. api_key .. ':' .. whole(count)
    size = size + #word
    if size < LONGEST - DIGITS then words[#words + 1] = word end
  end
  local pending = whole(number) .. table.concat(words)
  redis.call('HSET', KEYS[1], 'pending', pending)
  return pending
end

-- shelve(since): makes the intent of the lease pending, since then.
local function shelve(since)
  if not state.intent then return end
  local nonce, intent = state.intent:match('^(%d+) (.+)$')
  redis.call('HSET', KEYS[1], 'pending:' .. nonce, since .. ' new ' .. intent)
  redis.call('HDEL', KEYS[1], 'intent')
  state.intent = nil
  if state.pending then state.pending = recount() end
  note_call('unknown', nonce, intent)
end
