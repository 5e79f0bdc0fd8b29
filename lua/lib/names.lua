-- include: block
-- The records of names, a hash. A name is for one order, however often it is asked for. The hash has no TTL, since its
-- field `server` must outlast the records:
--   <cl_ord_id>  the record of a name, for a day: '<at> <key> <nonce> <deadline> <digest> <name> <txid>'
--             at        server time in microseconds when it was written
--             key       digest of the API key
--             nonce     of the latest request that tried to place the order, decimal ns
--             deadline  of that request, by Kraken's clock, in milliseconds since 1970
--             digest    of the order's parameters, keyed with the API key's secret
--             name      percent-encoded
--             txid      Kraken's, percent-encoded; '-' while it is not known that the order was placed
--   server    '<run id> <since> <swept>'
--             run id    of the server that has written this; '-' if it tells none
--             since     server time in microseconds: what may have been lost is older than this. 0 for the first server
--             swept     server time in microseconds when the records that are too old were removed

local RECORD_LIFE = 86400000000 -- microseconds
local LONGEST_RECORD = 2048     -- bytes

-- is_record(value): whether a stored value is a record.
local function is_record(value)
  if #value > LONGEST_RECORD then return false end
  local at, nonce = value:match('^(%d+) %x+ (%d+) %d+ %x+ %S+ %S+$')
  return at ~= nil and #at <= 16 and is_nonce(nonce)
end

-- is_over(record, now): whether a record has had its day.
local function is_over(record, now)
  return now - record:match('^%d+') > RECORD_LIFE
end
