-- include: journal
-- pending: lists the calls with an unknown outcome, also that of a lease which has ended while nobody asked. It changes
-- nothing.
--
-- KEYS  1 state  hash
-- Returns 'ok <now>' in microseconds, followed for each by
--         ' <nonce> <since> <state> <key> <method> <ids> <name> <at> <txids>' as in lib/journal.lua, with '-' where
--         there is no name and '0 -' where there is no result; or 'foreign <field> <value>'. Fields but those of
--         intents may have any value, and `lock` may if there is no intent.
local now = clock()
local words = { 'ok', now }
local function list(nonce, entry)
  local _, spaces = entry:gsub(' ', '')
  words[#words + 1] = nonce .. ' ' .. entry .. (spaces == 4 and ' - 0 -' or spaces == 5 and ' 0 -' or '')
end
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local nonce, entry = fields[i]:match('^pending:(.*)$'), fields[i + 1]
  if nonce then
    if not is_nonce(nonce) or not is_entry(entry) then return 'foreign ' .. named(fields[i], entry) end
    list(nonce, entry)
  elseif fields[i] == 'intent' then
    if not state.intent then return 'foreign ' .. named('intent', entry) end
    if state.foreign_lock then return 'foreign ' .. state.foreign_lock end
    local since = abandoned_since(now)
    if since then list(entry:match('^%d+'), since .. ' new ' .. entry:match(' (.+)$')) end
  end
end
return table.concat(words, ' ')
