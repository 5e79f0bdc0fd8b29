-- log: reads entries of a trail, the newest first. It changes nothing.
--
-- KEYS  1 stream  either one of lib/trail.lua
-- ARGV  1 after   id of the oldest entry to read, '(' before it to leave that one out, '-' for the first of all
--       2 before  id of the newest entry to read, in the same way, '+' for the last of all
--       3 count   of entries, 1 to 1000
-- Returns 'ok <now>' in microseconds, followed for each by ' <id> <number>' and that many times ' <field> <value>'.
--         In these '%' and all but printable ASCII is percent-encoded. At most 20 fields of an entry are told, and 1000
--         bytes of each value.
-- word(text): a text as one word of the reply.
local function word(text)
  return (text:sub(1, 1000):gsub('[^!-$&-~]', function(byte) return ('%%%02X'):format(byte:byte()) end))
end

local time, words = redis.call('TIME'), {}
for _, entry in ipairs(redis.call('XREVRANGE', KEYS[1], ARGV[2], ARGV[1], 'COUNT', ARGV[3])) do
  local fields = entry[2]
  local number = math.min(#fields / 2, 20)
  words[#words + 1] = ' ' .. entry[1] .. ' ' .. ('%d'):format(number)
  for i = 1, 2 * number do words[#words + 1] = ' ' .. word(fields[i]) end
end
return 'ok ' .. time[1] .. ('00000' .. time[2]):sub(-6) .. table.concat(words)
