-- include: nonce
-- The nonce rules: the time, and what follows from it and the last nonce.

local LOST_STATE_MARGIN = 1000000000  -- ns

-- clock(): server time in microseconds, as a string. TIME gives the microseconds without leading zeros.
local function clock()
  local time = redis.call('TIME')
  local fraction = time[2]
  return time[1] .. (#fraction == 6 and fraction or ('00000' .. fraction):sub(-6))
end

-- add(a, n): a + n as a string; n is a whole number from 0 to 8e15. Two limbs of at most 10 digits stay exact.
local function add(a, n)
  local high, low = a:sub(1, -11), a:sub(-10) + n
  if low >= 1e10 then
    local carry = math.floor(low / 1e10)
    high, low = ('%d'):format((high ~= '' and high or 0) + carry), low - carry * 1e10
  end
  return high == '' and ('%d'):format(low) or ('%s%010d'):format(high, low)
end

-- allocate(last, floor, now, count): first and last of `count` nonces, and whether lost state was healed; or nil when
-- they would exceed int64.
-- They begin at the server's time `now` (microseconds) or just above the last nonce, whichever is higher. `floor` is
-- the highest nonce that the caller has seen ('0': none). A floor above the last nonce proves that state was lost;
-- the margin covers nonces that other callers have seen.
local function allocate(last, floor, now, count)
  local first = now .. '000'
  local lost = floor ~= '0' and greater(floor, last or '0')
  if not lost and (not last or greater(first, last)) then -- the usual case, by numbers alone
    local more = (count - 1) % 1000
    return first, ('%d%03d'):format(now + (count - 1 - more) / 1000, more)
  end
  if last and not greater(first, last) then first = add(last, 1) end
  if lost then
    local healed = add(floor, 1 + LOST_STATE_MARGIN)
    if greater(healed, first) then first = healed end
  end
  local newest = add(first, count - 1)
  if greater(newest, HIGHEST) then return nil end
  return first, newest, lost
end
