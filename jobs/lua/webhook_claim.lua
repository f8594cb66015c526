-- needs webhooks
-- Gives due deliveries to a sender, for a while: if it is not heard of again they are due again.
-- ARGV: prefix, nonce, most deliveries, most per host, most per tenant, claim in ms,
--       what the sender is busy with (JSON objects: host -> deliveries, tenant -> deliveries)
-- Returns a flat list: id, url, secrets (JSON), body, hash as a flat list, id, ...
local nonce, most = ARGV[2], tonumber(ARGV[3])
local per_host, per_tenant, claim = tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local to_host, of_tenant = cjson.decode(ARGV[7]), cjson.decode(ARGV[8])
local given, taken = {}, 0

-- Returns url and secrets, or nil and why nothing can be sent.
local function target(d)
  if d.endpoint == '' then
    return d.url, redis.call('GET', P .. 'tenant:' .. d.tenant .. ':webhook-secrets') or '[]'
  end
  local seen = redis.call('HMGET', hook(d.endpoint), 'url', 'secrets', 'state')
  if not seen[1] then return nil, 'endpoint_deleted' end
  if seen[3] ~= 'enabled' then return nil, 'endpoint_disabled' end
  return seen[1], seen[2]
end

local function room_for(tenant, host)
  return math.min(per_host - (to_host[host] or 0), per_tenant - (of_tenant[tenant] or 0),
    most - taken)
end

local function take(tenant, host)
  local line, looks = line_of(tenant, host), 0
  while looks < 100 and room_for(tenant, host) > 0 do
    looks = looks + 1
    local id = redis.call('ZRANGEBYSCORE', line, '-inf', int(now), 'LIMIT', 0, 1)[1]
    if not id then break end
    local d = delivery_of(id)
    if not d or d.state ~= 'pending' then
      redis.call('ZREM', line, id)
    else
      local url, secrets = target(d)
      if url then
        redis.call('HSET', P .. 'delivery:' .. id, 'nonce', nonce)
        line_up(d, now + claim)
        given[#given + 1] = id
        given[#given + 1] = url
        given[#given + 1] = secrets
        given[#given + 1] = redis.call('HGET', P .. 'message:' .. d.message, 'body')
        given[#given + 1] = redis.call('HGETALL', P .. 'delivery:' .. id)
        taken = taken + 1
        to_host[host] = (to_host[host] or 0) + 1
        of_tenant[tenant] = (of_tenant[tenant] or 0) + 1
      else
        file(d, 'failed', secrets)
      end
    end
  end
  call_host(tenant, host)
end

-- Those that wait longest first; a tenant or a host with many does not keep the others waiting,
-- nor does one that has all it may have: it is passed over without a look at what it waits for.
local function due(list)
  return redis.call('ZRANGEBYSCORE', list, '-inf', int(now), 'LIMIT', 0, most + 1000)
end

for _, tenant in ipairs(due(P .. 'deliveries:tenants')) do
  if taken >= most then break end
  if (of_tenant[tenant] or 0) < per_tenant then
    for _, host in ipairs(due(P .. 'deliveries:hosts:' .. tenant)) do
      if room_for(tenant, host) > 0 then take(tenant, host) end
      if taken >= most or (of_tenant[tenant] or 0) >= per_tenant then break end
    end
  end
end
return given
