-- Nonces as decimal strings. A nonce has 19 digits; a Lua number is a double, exact to 2^53 (16 digits)
-- only, so nonces are never converted whole. Numbers below 2^53 (microseconds, counts) may be.

-- greater(a, b): a > b, for decimals without leading zeros.
local function greater(a, b)
  if #a ~= #b then return #a > #b end
  return a > b
end

-- add(a, n): a + n as a string; n is a whole number from 0 to 8e15. Two limbs of at most 10 digits stay exact.
local function add(a, n)
  if n == 0 then return a end
  local high, low = a:sub(1, -11), tonumber(a:sub(-10)) + n
  local carry = math.floor(low / 1e10)
  if carry > 0 then
    high = string.format('%.0f', (tonumber(high) or 0) + carry)
    low = low - carry * 1e10
  end
  if high == '' then return string.format('%.0f', low) end
  return high .. string.format('%010.0f', low)
end

-- whole(n): a number below 2^53 as a string, never in exponent form.
local function whole(n)
  return string.format('%.0f', n)
end
