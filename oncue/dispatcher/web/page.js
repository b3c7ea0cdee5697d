// What both pages share. Data goes into the page as text only (textContent), never as markup.

export function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

// Control and direction characters could disguise a name; they are shown by their number.
const HIDDEN = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2066-\u2069\ufeff]/g;

export function plain(value) {
  if (value === null || value === undefined) return "";
  const text = typeof value === "string" ? value : JSON.stringify(value);
  const safe = text.replace(HIDDEN, (c) => "\\u" + c.charCodeAt(0).toString(16).padStart(4, "0"));
  return safe.length > 300 ? safe.slice(0, 300) + "…" : safe;
}

// columns: [title, row => text or {text, className}]; below: row => elements that stand under it
export function fillTable(table, columns, rows, none, below = () => []) {
  const head = element("tr");
  for (const [title] of columns) head.append(element("th", title));
  const body = rows.flatMap((row) => {
    const line = element("tr");
    for (const [, show] of columns) {
      const shown = show(row);
      const cell = shown !== null && typeof shown === "object" ? shown : { text: shown };
      line.append(element("td", plain(cell.text), cell.className));
    }
    const more = below(row);
    if (!more.length) return [line];
    const wide = element("td");
    wide.colSpan = columns.length;
    wide.append(...more);
    const under = element("tr", undefined, "under");
    under.append(wide);
    return [line, under];
  });
  if (!rows.length) {
    const line = element("tr");
    const cell = element("td", none, "quiet");
    cell.colSpan = columns.length;
    line.append(cell);
    body.push(line);
  }
  const thead = element("thead");
  thead.append(head);
  const tbody = element("tbody");
  tbody.append(...body);
  table.replaceChildren(thead, tbody);
}

export function when(us) {
  return us ? new Date(us / 1000).toLocaleString() : "";
}
