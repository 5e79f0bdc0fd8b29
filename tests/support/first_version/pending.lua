-- include: lease
-- pending: the calls that nobody knows the outcome of, read-only.
--
-- KEYS  1 state  hash
-- Returns 'ok <now>' in microseconds, followed by ' <nonce> <since> <state> <key> <method> <ids>' for each, as in
--         lib/lease.lua, or 'foreign <value>'.
local state, value = load(KEYS[1])
if not state then return 'foreign ' .. value end
local words = { 'ok', clock() }
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local nonce = fields[i]:match('^pending:(%d+)$')
  if nonce then words[#words + 1] = nonce .. ' ' .. fields[i + 1] end
end
return table.concat(words, ' ')
