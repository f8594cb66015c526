-- needs webhooks
-- Ends a deletion: the record goes, after its blobs are gone, and with it whatever still was to be
-- told of the job. ARGV: prefix, id
local id = ARGV[2]
local job = load(id)
if job and job.deleted == '' then return 0 end
local key = P .. 'job:' .. id
redis.call('DEL', key, key .. ':events', key .. ':previews', key .. ':told')
for _, delivery in ipairs(redis.call('ZRANGE', key .. ':deliveries', 0, -1)) do
  forget(delivery)
end
redis.call('ZREM', P .. 'trash', id)
return 1
