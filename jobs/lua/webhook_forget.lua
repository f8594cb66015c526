-- needs webhooks
-- Removes deliveries that ended long ago. ARGV: prefix, ended at or before (ms), most at once
-- Returns how many
local old = redis.call('ZRANGEBYSCORE', P .. 'deliveries:ended', '-inf', ARGV[2],
  'LIMIT', 0, tonumber(ARGV[3]))
for _, id in ipairs(old) do forget(id) end
return #old
