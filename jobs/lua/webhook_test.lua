-- needs webhooks
-- Makes a delivery that belongs to no job. ARGV: prefix, id, endpoint, type, body (JSON)
-- Returns 'ok', 'missing' or 'disabled'. A repeat is answered alike.
local seen = redis.call('HMGET', hook(ARGV[3]), 'tenant', 'host', 'state')
if not seen[1] then return 'missing' end
if seen[3] ~= 'enabled' then return 'disabled' end
deliver({
  id = ARGV[2], tenant = seen[1], endpoint = ARGV[3], job = '', type = ARGV[4], url = '',
  host = seen[2], message = ARGV[2], body = ARGV[5],
})
return 'ok'
