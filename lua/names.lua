-- include: names
-- names: lists the records of names, and changes nothing.
--
-- KEYS  1 once  hash
-- Returns 'ok <now>' in microseconds, followed for each by ' <id> <record>' as in lib/names.lua; or
--         'foreign <field> <value>'.
local now = clock()
local words = { 'ok', now }
local fields = redis.call('HGETALL', KEYS[1])
for i = 1, #fields, 2 do
  local id, record = fields[i], fields[i + 1]
  if id ~= 'server' then
    if not is_record(record) then return 'foreign ' .. named(id, record) end
    if not is_over(record, now) then words[#words + 1] = id .. ' ' .. record end
  end
end
return table.concat(words, ' ')
