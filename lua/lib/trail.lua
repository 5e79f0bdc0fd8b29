-- The trail of an API key: two streams that tell people later what happened. An entry's id begins with the server's
-- time in milliseconds. Its fields are `kind`, `nonce`, `name`, `method`, and more by kind; docs/log.md lists them.
-- Names, methods and ids are percent-encoded, as in lib/state.lua. What does not apply is empty.
--   LOG     what is rare and must be found later; full leases can't push it out
--   LEASES  each lease that was released, each extension and each reserved nonce, if the caller wants that
-- A script that includes this has set LOG and LEASES to its keys, to nil where it has none.

local MOST_NOTES, MOST_LEASES = '10000', '100000' -- entries of each, and up to a hundred more
local WHO = '^[^|]*|([^|]*)|([^|]*)'              -- name and method in a member

-- note(stream, kind, nonce, name, method, ...): adds an entry; `...` are more fields and their values. Whatever keeps
-- it from being written (no memory, no permission, a value that is not ours) costs the entry and nothing else. It comes
-- after the write that it tells of.
local function note(stream, kind, nonce, name, method, ...)
  if not stream then return end
  redis.pcall('XADD', stream, 'MAXLEN', '~', stream == LOG and MOST_NOTES or MOST_LEASES, '*', 'kind', kind,
    'nonce', nonce, 'name', name or '', 'method', method or '', ...)
end
