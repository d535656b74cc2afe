"use strict";
(() => {
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const system = matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ?? (system.matches ? "dark" : "light")) === "dark";
  const name = () => { button.textContent = isDark() ? "Light theme" : "Dark theme"; };
  button.addEventListener("click", () => { root.dataset.theme = isDark() ? "light" : "dark"; name(); });
  system.addEventListener("change", name);
  button.hidden = false;
  name();

  // In a column of numbers the one that the cell starts with: of an interval the lower end.
  const value = (row, column) => {
    const words = row.cells[column].textContent.trim();
    if (!row.cells[column].classList.contains("number")) return words;
    const number = parseFloat(words.replace(/^[[<]/, ""));
    return Number.isNaN(number) ? "" : number;
  };
  const compare = (a, b) =>
    typeof a === "number" ? a - b : a.localeCompare(b, "en", { numeric: true });
  for (const table of document.querySelectorAll("table[data-sortable]")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const sorter = document.createElement("button");
      sorter.type = "button";
      sorter.append(...head.childNodes);
      head.append(sorter);
      sorter.addEventListener("click", () => {
        const order = head.getAttribute("aria-sort") === "ascending" ? "descending" : "ascending";
        const sign = order === "ascending" ? 1 : -1;
        const rows = [...table.tBodies[0].rows];
        const isEmpty = (row) => value(row, column) === "";
        rows.sort((a, b) => isEmpty(a) - isEmpty(b) || sign * compare(value(a, column), value(b, column)));
        table.tBodies[0].append(...rows);
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", order);
      });
    });
  }

  for (const block of document.querySelectorAll(".images-by")) {
    const choices = [...block.querySelectorAll("select")];
    const images = [...block.querySelectorAll("li")];
    const chosen = (by) => choices.find((one) => one.dataset.by === by)?.value ?? "";
    const shares = (image) => image.dataset.arms.split(" ")
      .map((one) => one.split("/")).map(([wrong, runs]) => wrong / runs);
    // How much more often an arm gets an image wrong than all arms do.
    const excess = (image, arm) => {
      const all = shares(image);
      return all[arm] - all.reduce((sum, one) => sum + one) / all.length;
    };
    const show = () => {
      const [label, arm] = [chosen("label"), chosen("arm")];
      for (const image of images) {
        const ofArm = arm === "" ? "" : image.dataset.arms.split(" ")[arm];
        image.hidden = (label !== "" && image.dataset.label !== label) || ofArm.startsWith("0/");
        image.querySelector(".of-arm").textContent = ofArm && `here wrong in ${ofArm.replace("/", " of ")}`;
      }
      const order = [...images];
      if (arm !== "") order.sort((a, b) => excess(b, arm) - excess(a, arm));
      block.querySelector("ul").append(...order);
      const count = images.filter((image) => !image.hidden).length;
      block.querySelector("[role=status]").textContent = `${count} of ${images.length} images` +
        (arm === "" ? "" : ", first those that other runs get right");
    };
    choices.forEach((one) => one.addEventListener("change", show));
    block.querySelector(".filter").hidden = false;
    show();
  }

  // Paper cannot be unfolded.
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")];
    folded.forEach((one) => { one.open = true; });
  });
  addEventListener("afterprint", () => folded.forEach((one) => { one.open = false; }));
})();
