-- Ends a deletion: the record goes, after its blobs are gone. ARGV: prefix, id
local id = ARGV[2]
local job = load(id)
if job and job.deleted == '' then return 0 end
redis.call('DEL', P .. 'job:' .. id, P .. 'job:' .. id .. ':events')
redis.call('ZREM', P .. 'trash', id)
return 1
