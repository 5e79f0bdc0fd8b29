-- include: nonce
-- advance: raises the last nonce to `target`, never lowers it.
-- Atomic because a nonce handed out between the comparison and the write could be lost.
-- Run twice, the second run finds the target reached.
--
-- KEYS  1 state     hash
-- ARGV  1 floor     decimal ns, highest nonce that the caller has seen, '0' for none
--       2 target    decimal ns
--       3 max_lead  ns that a target may lie ahead of the server's clock, below 2^53
--       4 below     decimal ns; a last nonce from there on is left alone, since another caller has raised it already
-- Returns 'ok <last>', 'too-far <last> <now>' when the target lies further ahead, 'foreign <value>' or
-- 'overflow <stored>'; all but 'ok' change nothing. `last` and `now` are decimal ns.
local stored = redis.call('HGET', KEYS[1], 'nonce')
if foreign(stored) then return 'foreign ' .. stored end
stored = stored or '0'
local target = ARGV[2]
local now = clock() .. '000'
if not greater(ARGV[4], stored) then return 'ok ' .. stored end
if greater(target, stored) and greater(target, add(now, tonumber(ARGV[3]))) then
  return 'too-far ' .. stored .. ' ' .. now
end
if greater(ARGV[1], stored) then -- state was lost
  local healed = add(ARGV[1], LOST_STATE_MARGIN)
  if greater(healed, target) then target = healed end
end
if greater(target, HIGHEST) then return 'overflow ' .. stored end
if greater(target, stored) then
  redis.call('HSET', KEYS[1], 'nonce', target)
  stored = target
end
return 'ok ' .. stored
