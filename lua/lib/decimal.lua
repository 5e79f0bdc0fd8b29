-- Numbers in what is stored and answered.

-- whole(n): a whole number below 2^53 as a string, never in exponent form.
local function whole(n)
  return ('%d'):format(n)
end
