-- Looks an API key up by its digest. ARGV: prefix, digest, how old the last use may be unnoted, ms
-- Returns the key's hash as a flat list, empty if it is unknown, revoked or expired
local key = P .. 'key:' .. ARGV[2]
local seen = redis.call('HMGET', key, 'id', 'revoked', 'expires', 'used')
if not seen[1] or (seen[2] and seen[2] ~= '') then return {} end
if tonumber(seen[3] or '') and tonumber(seen[3]) <= now then return {} end
if now - (tonumber(seen[4] or '') or 0) > tonumber(ARGV[3]) then
  redis.call('HSET', key, 'used', int(now))
end
return redis.call('HGETALL', key)
