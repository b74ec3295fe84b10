// Conveniences only: the page shows everything without this script.
"use strict";
for (const tools of document.querySelectorAll(".tools")) {
  tools.hidden = false;
  const chosen = {};
  tools.addEventListener("change", ({ target }) => {
    chosen[target.name] = target.value;
    const within = tools.parentElement;
    for (const row of within.querySelectorAll(".class"))
      row.hidden = Boolean(chosen.class) && row.dataset.class !== chosen.class;
    for (const strip of within.querySelectorAll(".strip"))
      strip.hidden = Boolean(chosen.method) && strip.dataset.method !== chosen.method;
  });
}
