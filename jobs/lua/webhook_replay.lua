-- needs webhooks
-- Has a delivery sent again; one that still waits is due at once. ARGV: prefix, id
-- Returns 'ok', 'missing', 'endpoint_deleted' or 'endpoint_disabled'
local d = delivery_of(ARGV[2])
if not d then return 'missing' end
if d.endpoint ~= '' then
  local enabled = redis.call('HGET', hook(d.endpoint), 'state')
  if not enabled then return 'endpoint_deleted' end
  if enabled ~= 'enabled' then return 'endpoint_disabled' end
end
-- While it is being sent the claim stays: what comes of it counts.
if d.state ~= 'pending' then
  send_again(d)
elseif d.nonce == '' then
  line_up(d, now)
end
return 'ok'
