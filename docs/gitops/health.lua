-- Health of a CompressionJob or CompressionSweep for Argo CD (Lua 5.1; `obj` is the live object).
local hs = { status = "Progressing", message = "Waiting for the operator" }
local status = obj.status
if status == nil or status.observedGeneration ~= obj.metadata.generation then
  return hs
end

local found = {}
for _, condition in ipairs(status.conditions or {}) do
  found[condition.type] = condition
end
local function is(name, value)
  return found[name] ~= nil and found[name].status == value
end
local function text(name)
  local message = found[name].message
  if message == nil or message == "" then
    message = found[name].reason
  end
  return message
end

if is("Failed", "True") then
  return { status = "Degraded", message = text("Failed") }
end
if is("Stalled", "True") then
  return { status = "Degraded", message = text("Stalled") }
end
if is("Complete", "True") then
  -- A missed constraint, or files that could not be published, is a result to look at, no broken deployment.
  for _, name in ipairs({ "ArtifactAvailable", "ConstraintsMet", "Compressed" }) do
    if is(name, "False") then
      return { status = "Healthy", message = text(name) }
    end
  end
  return { status = "Healthy", message = text("Complete") }
end
if is("Suspended", "True") then
  return { status = "Suspended", message = text("Suspended") }
end
if found["Ready"] ~= nil then
  hs.message = text("Ready")
end
return hs
