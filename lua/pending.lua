-- include: lease
-- pending: lists the calls with an unknown outcome and changes nothing.
--
-- KEYS  1 state  hash
-- Returns 'ok <now>' in microseconds, followed by ' <nonce> <since> <state> <key> <method> <ids>' for each, as in
--         lib/lease.lua, or 'foreign <field> <value>'. Fields but those of pending intents may have any value.
local words = { 'ok', clock() }
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local nonce, entry = fields[i]:match('^pending:(.*)$'), fields[i + 1]
  if nonce then
    if foreign(nonce) or not is_pending(entry) then return 'foreign ' .. named(fields[i], entry) end
    words[#words + 1] = nonce .. ' ' .. entry
  end
end
return table.concat(words, ' ')
