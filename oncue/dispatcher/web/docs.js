// The OpenAPI document, to read.

import { element, fillTable, plain } from "/page/page.js";

const by = (id) => document.getElementById(id);
const nameOf = (schema) => schema.$ref.split("/").pop();

function kind(schema) {
  if (!schema || !Object.keys(schema).length) return "any";
  if (schema.$ref) return nameOf(schema);
  if (schema.anyOf) return schema.anyOf.map(kind).join(" or ");
  if (schema.enum) return schema.enum.map((e) => JSON.stringify(e)).join(" or ");
  if (schema.type === "array") return schema.prefixItems ? `[${schema.prefixItems.map(kind).join(", ")}]` : `list of ${kind(schema.items)}`;
  if (schema.contentEncoding) return `${schema.type} (${schema.contentEncoding})`;
  return schema.type || "any";
}

function linked(schema) {
  const shown = element("span");
  const ref = schema && (schema.$ref ? schema : schema.items && schema.items.$ref ? schema.items : null);
  if (!ref) {
    shown.textContent = kind(schema);
    return shown;
  }
  const link = element("a", kind(schema));
  link.href = "#form-" + nameOf(ref);
  shown.append(link);
  return shown;
}

function line(title, ...parts) {
  const made = element("p");
  made.append(element("b", title + " "), ...parts);
  return made;
}

function media(content) {
  return Object.entries(content).flatMap(([type, { schema }], i) => [
    document.createTextNode(i ? ", or " : ""), element("code", type), document.createTextNode(" "), linked(schema)]);
}

function operation(path, method, op) {
  const made = element("details", undefined, "operation");
  made.id = `${method}-${op.operationId}`;
  made.dataset.words = `${method} ${path} ${op.description} ${op.tags}`.toLowerCase();
  const head = element("summary");
  head.append(element("code", method.toUpperCase(), "method " + method), element("code", path), element("span", op.summary));
  made.append(head, element("p", op.description));
  const scopes = op["x-oncue-scopes"];
  made.append(line("Token:", document.createTextNode(scopes ? `one of the scopes ${scopes.join(", ")}` : "none")));
  if (op.requestBody) made.append(line("Takes:", ...media(op.requestBody.content)));
  if (op.parameters.length) {
    const table = element("table");
    fillTable(table, [["parameter", (p) => p.name], ["in", (p) => p.in], ["type", (p) => kind(p.schema)],
      ["default", (p) => (p.schema.default === undefined ? "" : JSON.stringify(p.schema.default))],
      ["", (p) => p.description || ""]], op.parameters, "");
    made.append(table);
  }
  for (const [status, answer] of Object.entries(op.responses)) {
    const parts = status < "300" && answer.content ? media(answer.content) : [document.createTextNode(answer.description)];
    made.append(line(status, ...parts));
  }
  return made;
}

function form(name, schema) {
  const made = element("section");
  made.id = "form-" + name;
  made.append(element("h3", name));
  if (schema.description) made.append(element("p", schema.description));
  const required = new Set(schema.required || []);
  const fields = schema.properties ? Object.entries(schema.properties) : (schema.prefixItems || []).map((s, i) => [`[${i}]`, s]);
  const table = element("table");
  fillTable(table, [["field", ([n]) => n], ["type", ([, s]) => kind(s)],
    ["", ([n, s]) => (required.has(n) ? "required" : s.default === undefined ? "" : "default " + plain(s.default))]],
  fields, "no fields");
  made.append(table);
  return made;
}

const answer = await fetch("/openapi.json");
const spec = await answer.json();
by("version").textContent = `version ${spec.info.version}`;
by("about").textContent = spec.info.description;
for (const [path, methods] of Object.entries(spec.paths)) {
  for (const [method, op] of Object.entries(methods)) by("operations").append(operation(path, method, op));
}
for (const [name, schema] of Object.entries(spec.components.schemas)) by("schemas").append(form(name, schema));
by("filter").addEventListener("input", () => {
  const words = by("filter").value.toLowerCase().split(/\s+/);
  for (const op of by("operations").children) op.hidden = !words.every((w) => op.dataset.words.includes(w));
});
