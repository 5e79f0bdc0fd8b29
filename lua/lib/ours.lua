-- include: state
-- For scripts that go on with the state: returns if a field has a value that is not ours, and takes over a state of the
-- first version. Its lease counts until it ends; its waiters are let go, since their scripts refuse the state from now
-- on.

if state.foreign then return 'foreign ' .. state.foreign end
if state.version ~= VERSION then
  redis.call('HSET', KEYS[1], 'nonce', VERSION .. (state.nonce or '0'))
  if state.nonce then redis.call('DEL', KEYS[2]) end
  if state.nonce and state.member and not state.lease then
    redis.call('HDEL', KEYS[1], 'lock')
    state.member, state.asked = nil, nil
  end
  state.version = VERSION
end
