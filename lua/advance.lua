-- advance: raises the last nonce to `target`, never lowers it.
-- Atomic because a nonce handed out between the comparison and the write could be lost.
-- Run twice, the second run finds the target reached.
--
-- KEYS  1 state     hash
--       2 log       stream, lib/trail.lua; may be missing
-- ARGV  1 floor     decimal ns, highest nonce that the caller has seen, '0' for none
--       2 target    decimal ns
--       3 max_lead  ns, at most how far the target may be ahead of the server's clock, below 2^53
--       4 below     decimal ns; a last nonce at or above it is left as it is: another caller has raised it already
--       5 name      of who does it, percent-encoded, for the log
-- Returns 'ok <last>', 'too-far <last> <now>' when the target is further ahead, 'foreign <field> <value>' or
-- 'overflow <stored>'; all but 'ok' change nothing. `last` and `now` are decimal ns.
local LOG = KEYS[2]
-- include: block
-- include: trail
local stored = redis.call('HGET', KEYS[1], 'nonce')
local nonce, version = read_nonce(stored)
if not version then return 'foreign ' .. named('nonce', stored) end
local last = nonce or '0'
local target = ARGV[2]
local now = clock() .. '000'
if not greater(ARGV[4], last) then return 'ok ' .. last end
if greater(target, last) and greater(target, add(now, tonumber(ARGV[3]))) then
  return 'too-far ' .. last .. ' ' .. now
end
local lost = greater(ARGV[1], last)
if lost then
  local healed = add(ARGV[1], LOST_STATE_MARGIN)
  if greater(healed, target) then target = healed end
end
if greater(target, HIGHEST) then return 'overflow ' .. last end
if greater(target, last) then
  redis.call('HSET', KEYS[1], 'nonce', (nonce and version or VERSION) .. target)
  if lost then note(LOG, 'healed', target, ARGV[5], '', 'floor', ARGV[1], 'stored', nonce or '') end
  if greater(ARGV[2], last) then
    local cause = ARGV[4] == HIGHEST and 'asked' or 'refused'
    note(LOG, 'raised', target, ARGV[5], '', 'stored', nonce or '', 'cause', cause)
  end
  last = target
end
return 'ok ' .. last
