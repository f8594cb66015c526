-- needs webhooks
-- Removes an endpoint. Its deliveries stay in the lists of their jobs and of the tenant; those that
-- still wait fail when their time comes. ARGV: prefix, id
-- Returns 1, or 0 without such a one
local id = ARGV[2]
local tenant = redis.call('HGET', hook(id), 'tenant')
if not tenant then return 0 end
list_under(id, tenant, '', false)
redis.call('ZREM', P .. 'webhooks', id)
redis.call('SREM', P .. 'webhooks:disabled', id)
redis.call('ZREM', P .. 'tenant:' .. tenant .. ':webhooks', id)
redis.call('DEL', hook(id), hook(id) .. ':deliveries')
for _, state in ipairs({'pending', 'delivered', 'failed'}) do
  redis.call('DEL', hook(id) .. ':deliveries:' .. state)
end
return 1
