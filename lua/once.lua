-- include: state
-- include: names
-- once: reads the record of a name, writes it or removes it.
-- Atomic because a caller that has lost its lease must not change what the next one has written.
-- Run twice, the second run finds or writes the same again.
--
-- KEYS  1 state   hash
--       2 once    hash
-- ARGV  1 member  as in acquire, which must have a lease; '' for people, who need none
--       2 id      the order's cl_ord_id
--       3 record  to write, as in lib/names.lua without `at`; '-' removes it, '' leaves it as it is
--       4 seen    '1' when the caller's process has seen that there were names before, '0' when it knows of none
-- Returns 'ok <now> <since> <record>' with what there was before, '-' for none, and `since` as in lib/names.lua; 'lost'
--         when the member has no lease, or 'foreign <field> <value>': nothing changed. Apart from 'foreign - <error>',
--         for a state that is no hash, the fields are those of the second key.
local now = clock()
if ARGV[1] ~= '' and (state.member ~= ARGV[1] or not state.lease) then return 'lost' end
local record, mark = redis.call('HGET', KEYS[2], ARGV[2]), redis.call('HGET', KEYS[2], 'server')
if record and not is_record(record) then return 'foreign ' .. named(ARGV[2], record) end
local server, since, swept = (mark or '- 0 ' .. now):match('^([%w-]+) (%d+) (%d+)$')
if not server then return 'foreign ' .. named('server', mark) end
if record and is_over(record, now) then record = nil end

-- The server before may have had records that this one never got: one that was restarted, or a master of which this
-- one was a replica. That all was lost, only who has seen it before can tell from the first use.
local info = redis.pcall('INFO', 'server')
if type(info) == 'table' then
  if not tostring(info.err):lower():find('unknown command', 1, true) then return info end
  info = '' -- a fake of Redis
end
local run = info:match('run_id:(%w+)') or '-'
if mark and server ~= run or not mark and ARGV[4] == '1' then since = now end
if ARGV[3] ~= '' and now - swept > 3600000000 then
  local fields = redis.call('HGETALL', KEYS[2])
  for i = 1, #fields, 2 do
    if is_record(fields[i + 1]) and is_over(fields[i + 1], now) then redis.call('HDEL', KEYS[2], fields[i]) end
  end
  swept = now
end
local current = run .. ' ' .. since .. ' ' .. swept
if current ~= mark then redis.call('HSET', KEYS[2], 'server', current) end

if ARGV[3] == '-' then
  redis.call('HDEL', KEYS[2], ARGV[2])
elseif ARGV[3] ~= '' then
  redis.call('HSET', KEYS[2], ARGV[2], now .. ' ' .. ARGV[3])
end
return 'ok ' .. now .. ' ' .. since .. ' ' .. (record or '-')
